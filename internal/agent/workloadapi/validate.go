package workloadapi

import (
	"crypto/ecdsa"
	"crypto/rsa"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
	"github.com/legation-io/legation/internal/agent/svid"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

const (
	// maxToken bounds what is parsed at all.
	maxToken = 16 << 10
	// leeway is how far the issuer's clock may be ahead of ours. An expired
	// token has none.
	leeway = time.Minute
)

// algorithms of JWT-SVID.md 2.1. Our own signer uses ES256; foreign domains
// may use the others. "none" and HMAC are no member.
var algorithms = []jose.SignatureAlgorithm{
	jose.ES256, jose.ES384, jose.ES512,
	jose.RS256, jose.RS384, jose.RS512,
	jose.PS256, jose.PS384, jose.PS512,
}

// keySet is a Trust's JWK sets, parsed once.
type keySet struct {
	trust *svid.Trust
	// byDomain: trust domain, then key id. A key speaks for its own domain
	// only, whatever other domain has a key with the same id.
	byDomain map[string]map[string]any
}

func (s *Server) keysOf(trust *svid.Trust) *keySet {
	if k := s.keys.Load(); k != nil && k.trust == trust {
		return k
	}
	k := &keySet{trust: trust, byDomain: map[string]map[string]any{}}
	for td, jwks := range trust.JWKS {
		keys, err := parseKeys(jwks)
		if err != nil {
			s.log.Warn("the JWT keys of a trust domain cannot be used; its tokens are refused", "trust_domain", td, "error", err)
			continue
		}
		k.byDomain[td] = keys
	}
	s.keys.Store(k)
	return k
}

// parseKeys leaves out what cannot verify JWT-SVIDs (SPIFFE_Trust_Domain_and_Bundle.md
// 4.2: unknown uses are ignored).
func parseKeys(jwks []byte) (map[string]any, error) {
	if len(jwks) == 0 {
		return nil, nil
	}
	var set struct {
		Keys []json.RawMessage `json:"keys"`
	}
	if err := json.Unmarshal(jwks, &set); err != nil {
		return nil, err
	}
	keys := map[string]any{}
	for _, raw := range set.Keys {
		var k jose.JSONWebKey
		if err := k.UnmarshalJSON(raw); err != nil {
			continue // of a kind that is not known here
		}
		if k.KeyID == "" || k.Use != "jwt-svid" || !k.Valid() || !k.IsPublic() {
			continue
		}
		switch pub := k.Key.(type) {
		case *ecdsa.PublicKey:
		case *rsa.PublicKey:
			if pub.N.BitLen() < 2048 || pub.N.BitLen() > 8192 {
				continue
			}
		default:
			continue
		}
		if _, ok := keys[k.KeyID]; !ok {
			keys[k.KeyID] = k.Key
		}
	}
	return keys, nil
}

// validate checks a token by JWT-SVID.md 4 and RFC 7519. Header members that
// bring or point to keys (jwk, jku, x5c, x5u) are never looked at.
func validate(token, audience string, keys *keySet, now time.Time) (spiffeid.ID, map[string]any, error) {
	none := spiffeid.ID{}
	if len(token) > maxToken {
		return none, nil, fmt.Errorf("it has %d bytes, more than %d", len(token), maxToken)
	}
	if strings.Count(token, ".") != 2 || strings.ContainsAny(token, "{}\" \t\r\n") {
		return none, nil, errors.New("it is not in JWS compact serialisation (three parts, two dots)")
	}
	parsed, err := jwt.ParseSigned(token, algorithms)
	if err != nil {
		return none, nil, err
	}
	if len(parsed.Headers) != 1 {
		return none, nil, errors.New("it does not have one header")
	}
	header := parsed.Headers[0]
	if _, ok := header.ExtraHeaders["crit"]; ok {
		return none, nil, errors.New("its header has crit, and no extension is known here")
	}
	// JWT-SVID.md 2.3: typ is optional; if set it is one of these.
	if typ, ok := header.ExtraHeaders[jose.HeaderType]; ok && typ != "JWT" && typ != "JOSE" {
		return none, nil, fmt.Errorf("its header has typ %q, want JWT or JOSE", typ)
	}
	if header.KeyID == "" {
		return none, nil, errors.New("its header names no key (kid)")
	}

	// The subject says whose keys may have signed it; what it says counts
	// only once one of them did.
	var unverified jwt.Claims
	if err := parsed.UnsafeClaimsWithoutVerification(&unverified); err != nil {
		return none, nil, fmt.Errorf("its claims: %w", err)
	}
	id, err := spiffeid.FromString(unverified.Subject)
	if err != nil {
		return none, nil, fmt.Errorf("its sub is not a SPIFFE ID: %w", err)
	}
	td := id.TrustDomain().Name()
	domain, ok := keys.byDomain[td]
	if !ok {
		return none, nil, fmt.Errorf("trust domain %q is not trusted here for JWT-SVIDs", td)
	}
	key, ok := domain[header.KeyID]
	if !ok {
		return none, nil, fmt.Errorf("trust domain %q has no key %q", td, header.KeyID)
	}
	var claims jwt.Claims
	all := map[string]any{}
	if err := parsed.Claims(key, &claims, &all); err != nil {
		return none, nil, err
	}
	if claims.Subject != unverified.Subject {
		return none, nil, errors.New("its sub changed while it was read")
	}

	switch {
	case claims.Expiry == nil:
		return none, nil, errors.New("it has no exp")
	case !now.Before(claims.Expiry.Time()):
		return none, nil, fmt.Errorf("it expired at %s", claims.Expiry.Time().UTC().Format(time.RFC3339))
	case claims.NotBefore != nil && now.Add(leeway).Before(claims.NotBefore.Time()):
		return none, nil, fmt.Errorf("it is not valid before %s (nbf)", claims.NotBefore.Time().UTC().Format(time.RFC3339))
	case claims.IssuedAt != nil && now.Add(leeway).Before(claims.IssuedAt.Time()):
		return none, nil, fmt.Errorf("it was issued in the future, at %s (iat)", claims.IssuedAt.Time().UTC().Format(time.RFC3339))
	case len(claims.Audience) == 0:
		return none, nil, errors.New("it has no aud")
	case !slices.Contains(claims.Audience, audience):
		return none, nil, fmt.Errorf("it is for %q and not for %q", []string(claims.Audience), audience)
	}
	return id, all, nil
}
