// Package fakeca signs JWT-SVIDs for tests, also such as no authority would.
package fakeca

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/json"
	"errors"
	"maps"
	"sync"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/legation-io/legation/sdk/jwtcheck"
)

// CA is the authority of one trust domain.
type CA struct {
	Domain spiffeid.TrustDomain
	// Now is its clock; nil is time.Now.
	Now    func() time.Time
	signer jose.Signer
	jwks   []byte
}

// New makes an authority.
func New(t testing.TB, domain string) *CA {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	ca := &CA{Domain: spiffeid.RequireTrustDomainFromString(domain)}
	if ca.signer, err = jose.NewSigner(jose.SigningKey{Algorithm: jose.ES256, Key: jose.JSONWebKey{Key: key, KeyID: "k1"}}, (&jose.SignerOptions{}).WithType("JWT")); err != nil {
		t.Fatal(err)
	}
	if ca.jwks, err = json.Marshal(jose.JSONWebKeySet{Keys: []jose.JSONWebKey{{Key: key.Public(), KeyID: "k1", Use: "jwt-svid"}}}); err != nil {
		t.Fatal(err)
	}
	return ca
}

// JWKS is its keys.
func (c *CA) JWKS() []byte { return c.jwks }

// Bundle is its keys.
func (c *CA) Bundle(t testing.TB) *jwtcheck.Bundle {
	t.Helper()
	b, err := jwtcheck.ParseBundle(c.Domain, c.jwks)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// ID is one of its workloads.
func (c *CA) ID(name string) spiffeid.ID { return spiffeid.RequireFromPath(c.Domain, "/"+name) }

func (c *CA) now() time.Time {
	if c.Now == nil {
		return time.Now()
	}
	return c.Now()
}

// Sign signs any claims; sub, aud, iat and exp are set where with does not.
func (c *CA) Sign(sub spiffeid.ID, aud any, with map[string]any) (string, error) {
	now := c.now()
	claims := map[string]any{
		"sub": sub.String(), "aud": aud, "iat": now.Unix(), "exp": now.Add(5 * time.Minute).Unix(),
		"spiffe_id": sub.String(), "cluster": "test", "workload_name": "default" + sub.Path(),
	}
	maps.Copy(claims, with)
	return jwt.Signed(c.signer).Claims(claims).Serialize()
}

// Workload signs for one of its workloads, as propagation.TokenSource asks.
type Workload struct {
	CA    *CA
	ID    spiffeid.ID
	Plain bool // as SPIRE: further claims are not signed

	mu    sync.Mutex // guards what follows
	down  bool
	asked int
}

// SetDown makes signing fail.
func (w *Workload) SetDown(down bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.down = down
}

// Asked is how often a token was asked for.
func (w *Workload) Asked() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.asked
}

// Fetch signs.
func (w *Workload) Fetch(_ context.Context, audience spiffeid.ID, ext map[string]string) (text string, expires time.Time, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.asked++
	if w.down {
		return "", time.Time{}, errors.New("the authority is away")
	}
	with := map[string]any{}
	if !w.Plain && len(ext) > 0 {
		with["ext"] = ext
	}
	text, err = w.CA.Sign(w.ID, []string{audience.String()}, with)
	return text, w.CA.now().Add(5 * time.Minute), err
}
