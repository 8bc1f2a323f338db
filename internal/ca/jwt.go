package ca

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"slices"
	"time"
	"unicode/utf8"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/cryptosigner"
	"github.com/go-jose/go-jose/v4/jwt"

	"github.com/legation-io/legation/internal/fault"
	"github.com/legation-io/legation/internal/ledger"
	"github.com/legation-io/legation/internal/store"
)

const (
	maxAudiences   = 32
	maxAudienceLen = 2048 // of a SPIFFE ID

	maxExt      = 16
	maxExtBytes = 4096 // of all values
)

// workloadClaims say more about the subject than a JWT-SVID must.
type workloadClaims struct {
	SPIFFEID     string            `json:"spiffe_id"`
	Cluster      string            `json:"cluster,omitempty"`
	WorkloadName string            `json:"workload_name,omitempty"`
	Ext          map[string]string `json:"ext,omitempty"`
}

// SignJWT signs one JWT-SVID (SPIFFE JWT-SVID; ES256), recorded before it is
// returned. fault.Denied when the identity is blocked.
func (a *Authority) SignJWT(ctx context.Context, req JWTRequest) (JWTResult, error) {
	result, err := a.signJWT(ctx, req)
	label := "ok"
	if err != nil {
		label = string(fault.KindOf(err))
		err = fmt.Errorf("sign a JWT-SVID for %s: %w", req.ID, err)
	}
	a.metric.jwts.WithLabelValues(label).Inc()
	return result, err
}

func (a *Authority) signJWT(ctx context.Context, req JWTRequest) (JWTResult, error) {
	if err := a.checkID(ProfileWorkload, req.ID, req.Node); err != nil {
		return JWTResult{}, err
	}
	if err := checkAudience(req.Audience); err != nil {
		return JWTResult{}, err
	}
	if err := checkExt(req.Ext); err != nil {
		return JWTResult{}, err
	}
	ttl, reason, err := lifetime(req.TTL, a.life.JWTDefault, a.life.JWTMax)
	if err != nil {
		return JWTResult{}, err
	}
	if err := a.admit(1); err != nil {
		return JWTResult{}, err
	}
	defer a.inFlight.Add(-1)
	now, err := a.guard.Check()
	if err != nil {
		return JWTResult{}, err
	}
	now = now.UTC()
	issued, expires := now.Truncate(time.Second), now.Add(ttl).Truncate(time.Second)

	signer, err := jose.NewSigner(
		jose.SigningKey{Algorithm: jose.ES256, Key: jose.JSONWebKey{Key: cryptosigner.Opaque(a.jwtKey), KeyID: a.object.JWTKeyID}},
		(&jose.SignerOptions{}).WithType("JWT"))
	if err != nil {
		return JWTResult{}, err
	}
	var jti [16]byte
	rand.Read(jti[:])
	claims := jwt.Claims{
		ID: hex.EncodeToString(jti[:]), Subject: req.ID.String(), Audience: req.Audience,
		IssuedAt: jwt.NewNumericDate(issued), Expiry: jwt.NewNumericDate(expires),
	}
	further := workloadClaims{SPIFFEID: req.ID.String(), Cluster: a.cluster, WorkloadName: req.Entry, Ext: req.Ext}
	token, err := jwt.Signed(signer).Claims(claims).Claims(further).Serialize()
	if err != nil {
		return JWTResult{}, err
	}
	record := ledger.Record{
		Kind: ledger.KindJWT, Authority: DefaultName, Profile: string(ProfileWorkload), Serial: claims.ID, SPIFFEID: req.ID.String(),
		Namespace: req.Namespace, Entry: req.Entry, Node: req.Node, Instance: req.Instance, IssuedAt: now, NotBefore: issued, NotAfter: expires,
		Audience: req.Audience, SHA256: sha256.Sum256([]byte(token)), LifetimeReason: reason,
	}
	a.failpoint("jwt:signed")
	for range maxRaces {
		state := a.state.Get()
		if err := state.blocks(req.ID.String(), req.Node); err != nil {
			return JWTResult{}, err
		}
		err = a.journal.RecordIf(ctx, []ledger.Record{record}, store.Cond{Key: a.crlKey(), Revision: state.crlRevision})
		if !lostRace(err) {
			break
		}
		if _, err := a.newerThan(ctx, state); err != nil {
			return JWTResult{}, err
		}
	}
	if err != nil {
		return JWTResult{}, err
	}
	a.failpoint("jwt:recorded")
	if err := a.state.Get().blocks(req.ID.String(), req.Node); err != nil {
		return JWTResult{}, err
	}
	return JWTResult{Token: token, IssuedAt: issued, ExpiresAt: expires}, nil
}

func checkAudience(audience []string) error {
	if len(audience) == 0 {
		return fault.New(fault.Invalid, "no audience given; a JWT-SVID names who may accept it")
	}
	if len(audience) > maxAudiences {
		return fault.New(fault.Invalid, "%d audiences, over the limit of %d", len(audience), maxAudiences)
	}
	for i, aud := range audience {
		if aud == "" || len(aud) > maxAudienceLen {
			return fault.New(fault.Invalid, "audience %d is empty, or longer than %d bytes", i+1, maxAudienceLen)
		}
	}
	return nil
}

// reservedClaims are what readers of a token look for at its top. Below ext
// they mean nothing to us; a reader that flattens claims would be misled.
var reservedClaims = []string{"iss", "sub", "aud", "exp", "nbf", "iat", "jti", "spiffe_id", "cluster", "workload_name", "ext"}

func checkExt(ext map[string]string) error {
	if len(ext) > maxExt {
		return fault.New(fault.Invalid, "%d further claims, over the limit of %d", len(ext), maxExt)
	}
	size := 0
	for name, value := range ext {
		if !extName(name) {
			return fault.New(fault.Invalid, "%.80q is no name for a further claim: 1 to 64 of a-z, 0-9, '_', '.', '-'", name)
		}
		if slices.Contains(reservedClaims, name) {
			return fault.New(fault.Invalid, "the claim %s is the authority's to set; choose another name", name)
		}
		if !utf8.ValidString(value) {
			return fault.New(fault.Invalid, "the claim %s is not UTF-8", name)
		}
		size += len(value)
	}
	if size > maxExtBytes {
		return fault.New(fault.Invalid, "further claims of %d bytes, over the limit of %d", size, maxExtBytes)
	}
	return nil
}

func extName(name string) bool {
	for i := range len(name) {
		c := name[i]
		if !('a' <= c && c <= 'z' || '0' <= c && c <= '9' || c == '_' || c == '.' || c == '-') {
			return false
		}
	}
	return len(name) >= 1 && len(name) <= 64
}
