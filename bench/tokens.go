package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
	"github.com/spiffe/go-spiffe/v2/bundle/jwtbundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/jwtsvid"

	sdkidentity "github.com/legation-io/legation/sdk/identity"
	"github.com/legation-io/legation/sdk/jwtcheck"
	"github.com/legation-io/legation/sdk/propagation"
)

// tokenCosts is what a verified token and a verified calling chain cost a
// service for each request, in process; no socket and no agent.
func tokenCosts(context.Context, *run) ([]Row, error) {
	td := spiffeid.RequireTrustDomainFromString("example.org")
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.ES256, Key: jose.JSONWebKey{Key: key, KeyID: "k1"}}, (&jose.SignerOptions{}).WithType("JWT"))
	if err != nil {
		return nil, err
	}
	id := func(i int) spiffeid.ID {
		return spiffeid.RequireFromString(fmt.Sprintf("spiffe://example.org/ns/shop/sa/service-%d", i))
	}
	const hops = 5
	var chain []string
	for i := range hops {
		claims := map[string]any{
			"sub": id(i).String(), "aud": []string{id(i + 1).String()}, "iat": time.Now().Unix(), "exp": time.Now().Add(time.Hour).Unix(),
			"jti": "0123456789abcdef0123456789abcdef", "spiffe_id": id(i).String(), "cluster": "example.org", "workload_name": fmt.Sprintf("shop/service-%d", i),
		}
		if i > 0 {
			sum := sha256.Sum256([]byte(chain[i-1]))
			claims["ext"] = map[string]string{"legation.prev": base64.RawURLEncoding.EncodeToString(sum[:])}
		}
		token, err := jwt.Signed(signer).Claims(claims).Serialize()
		if err != nil {
			return nil, err
		}
		chain = append(chain, token)
	}
	jwks, err := json.Marshal(jose.JSONWebKeySet{Keys: []jose.JSONWebKey{{Key: key.Public(), KeyID: "k1", Use: "jwt-svid"}}})
	if err != nil {
		return nil, err
	}
	bundle, err := jwtcheck.ParseBundle(td, jwks)
	if err != nil {
		return nil, err
	}
	keys, verifier := jwtcheck.NewKeys(bundle), jwtcheck.New(jwtcheck.Config{})
	audience := id(1).String()
	verify := func() error { _, err := verifier.Verify(keys, chain[0], audience); return err }
	cached, err := cpuMicros(200_000, verify)
	if err != nil {
		return nil, err
	}
	allocations := testing.AllocsPerRun(1000, func() { _ = verify() })
	peers := jwtbundle.New(td)
	if err := peers.AddJWTAuthority("k1", key.Public()); err != nil {
		return nil, err
	}
	peer, err := cpuMicros(5_000, func() error {
		_, err := jwtsvid.ParseAndValidate(chain[0], peers, []string{id(1).String()})
		return err
	})
	if err != nil {
		return nil, err
	}
	in, err := propagation.NewInbound(propagation.Config{Identity: sdkidentity.NewMemory(&sdkidentity.Snapshot{ID: id(hops)}), Keys: jwtcheck.Static{K: keys}})
	if err != nil {
		return nil, err
	}
	received := propagation.Received{Peer: sdkidentity.Peer{ID: id(hops - 1)}, Tokens: []string{"jwt:" + strings.Join(chain, "~")}}
	whole, err := cpuMicros(50_000, func() error { _, err := in.Accept(received); return err })
	if err != nil {
		return nil, err
	}
	return []Row{
		atMost("token verified, from cache, CPU", cached, "µs", 2).beside("go-spiffe, which has none", peer),
		fact("token verified, from cache, allocations", allocations, ""),
		fact("calling chain of 5 verified, from cache, CPU", whole, "µs"),
	}, nil
}

// cpuMicros is what one call costs, µs of CPU, garbage collection included.
func cpuMicros(times int, f func() error) (float64, error) {
	if err := f(); err != nil {
		return 0, err
	}
	before := ownCPU()
	for range times {
		if err := f(); err != nil {
			return 0, err
		}
	}
	return float64((ownCPU() - before).Nanoseconds()) / float64(times) / 1e3, nil
}
