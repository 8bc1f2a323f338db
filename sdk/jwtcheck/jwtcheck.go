// Package jwtcheck answers "is this token a JWT-SVID that this trust domain
// signed, for this audience, right now". It is the one verifier of JWT-SVIDs:
// the agent's ValidateJWTSVID and package propagation both use it.
//
// It follows the JWT-SVID standard, RFC 7519 and RFC 7515, and where the
// standard leaves a choice takes the strict one:
//
//   - JWS compact serialisation only, base64url in its one canonical spelling;
//   - the header has alg, kid and typ and nothing else (JWT-SVID 2), so that
//     jwk, jku, x5u, x5c, crit and zip refuse a token instead of steering it;
//   - alg is one of RS, ES or PS 256, 384, 512 and fits the key (JWT-SVID 2.1);
//   - kid is required, and names a key of the subject's own trust domain;
//   - sub is a SPIFFE ID with a path, aud has the audience exactly, exp is
//     there; no member is there twice, at any depth.
//
// What a token costs is bounded before anything of it is decoded. What was
// verified is remembered under a hash of the token, until the token expires or
// its key leaves the bundle; dates and audience are judged each time.
//
// Who may do what is left to the caller, who gets the SPIFFE ID and the
// claims. Where keys come from is left to the source of the bundles.
package jwtcheck

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/sha256"
	"slices"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// Defaults of a Config.
const (
	DefaultMaxBytes  = 16 << 10
	DefaultLeeway    = time.Minute
	DefaultCacheSize = 4096
)

// Config is how tokens are judged. The zero value is safe.
type Config struct {
	// MaxBytes is the longest token that is looked at; 0 is 16 KiB.
	MaxBytes int
	// Leeway is how far an issuer's clock may be ahead of ours (nbf, iat);
	// 0 is a minute, negative none. An expired token has none.
	Leeway time.Duration
	// CacheSize is how many verified tokens are remembered at most, usually
	// 2 KiB each; 0 is 4,096, negative none. One with more than 6 KiB of claims
	// is verified each time.
	CacheSize int
	// Now is wall time; nil is time.Now.
	Now func() time.Time
}

// Verifier judges tokens. It is for use by many goroutines at once.
type Verifier struct {
	maxBytes int
	leeway   time.Duration
	now      func() time.Time
	cache    cache
}

// New returns a Verifier.
func New(c Config) *Verifier {
	v := &Verifier{maxBytes: c.MaxBytes, leeway: c.Leeway, now: c.Now}
	if v.maxBytes <= 0 {
		v.maxBytes = DefaultMaxBytes
	}
	switch {
	case v.leeway == 0:
		v.leeway = DefaultLeeway
	case v.leeway < 0:
		v.leeway = 0
	}
	if v.now == nil {
		v.now = time.Now
	}
	v.cache.limit = c.CacheSize
	if v.cache.limit == 0 {
		v.cache.limit = DefaultCacheSize
	}
	return v
}

// Token is a verified JWT-SVID. It is shared and never changed.
type Token struct {
	// ID is the subject, in the trust domain whose key signed.
	ID spiffeid.ID
	// Audience is who may accept the token, at least one; not to be changed.
	Audience []string
	// ExpiresAt is exp. IssuedAt and NotBefore are zero where the token has no
	// iat or nbf.
	ExpiresAt, IssuedAt, NotBefore time.Time
	// KeyID and Algorithm are of the signature.
	KeyID, Algorithm string
	// Sum is SHA-256 of the token's text: other tokens can name this one by it.
	Sum [sha256.Size]byte

	payload []byte
	claims  map[string]any
}

// Claim returns one claim as encoding/json decodes it into an any. A map or a
// slice that it returns is not to be changed.
func (t *Token) Claim(name string) (any, bool) {
	c, ok := t.claims[name]
	return c, ok
}

// Claims returns all claims as encoding/json decodes them; the map is the
// caller's.
func (t *Token) Claims() map[string]any {
	claims, err := decodeObject(t.payload)
	if err != nil { // it was decoded before
		return map[string]any{}
	}
	return claims
}

// Verify checks a token for one audience by the standards that the package
// names. A nil keys trusts nobody. The error is always an *Error; its text
// has nothing of the token but its header, the names of its claims, its
// subject, audience and dates.
func (v *Verifier) Verify(keys *Keys, token, audience string) (*Token, error) {
	if len(token) > v.maxBytes {
		return nil, refuse(TooLarge, "it has %d bytes, more than %d", len(token), v.maxBytes)
	}
	if audience == "" {
		return nil, refuse(WrongAudience, "no audience was given to check it for")
	}
	now := v.now()
	sum := sha256.Sum256([]byte(token))
	if e := v.cache.get(sum, keys); e != nil {
		if !now.Before(e.token.ExpiresAt) {
			v.cache.drop(sum)
		}
		if err := v.judge(e.token, audience, now); err != nil {
			return nil, err
		}
		return e.token, nil
	}
	t, key, err := verify(token, keys)
	if err != nil {
		return nil, err
	}
	t.Sum = sum
	if err := v.judge(t, audience, now); err != nil {
		return nil, err
	}
	if len(t.payload) <= maxCachedClaims {
		v.cache.put(sum, keys, t, key)
	}
	return t, nil
}

// Subject returns the subject that an unverified token claims, so that a
// caller can say whose token it refuses; zero when there is none. Nothing may
// be decided by it.
func (v *Verifier) Subject(token string) spiffeid.ID {
	if len(token) > v.maxBytes {
		return spiffeid.ID{}
	}
	p, err := split(token)
	if err != nil {
		return spiffeid.ID{}
	}
	id, _, err := p.subject()
	if err != nil {
		return spiffeid.ID{}
	}
	return id
}

// judge checks what changes without the token: the time, and for whom.
func (v *Verifier) judge(t *Token, audience string, now time.Time) error {
	switch {
	case !now.Before(t.ExpiresAt):
		return refuse(Expired, "it expired at %s", stamp(t.ExpiresAt))
	case !t.NotBefore.IsZero() && now.Add(v.leeway).Before(t.NotBefore):
		return refuse(NotYetValid, "it is not valid before %s (nbf); check both clocks", stamp(t.NotBefore))
	case !t.IssuedAt.IsZero() && now.Add(v.leeway).Before(t.IssuedAt):
		return refuse(NotYetValid, "it was issued in the future, at %s (iat); check both clocks", stamp(t.IssuedAt))
	case !slices.Contains(t.Audience, audience):
		return refuse(WrongAudience, "it is for %.300q and not for %.300q", t.Audience, audience)
	}
	return nil
}

func stamp(t time.Time) string { return t.UTC().Format(time.RFC3339) }

// verify checks everything that stays true.
func verify(token string, keys *Keys) (*Token, publicKey, error) {
	p, err := split(token)
	if err != nil {
		return nil, nil, err
	}
	// The subject says whose keys may have signed it; what it says counts
	// only once one of them did.
	id, claims, err := p.subject()
	if err != nil {
		return nil, nil, err
	}
	td := id.TrustDomain()
	domain, ok := keys.domain(td)
	if !ok {
		return nil, nil, refuse(UnknownTrustDomain, "trust domain %q is not trusted here for JWT-SVIDs; is it federated, and does its bundle have jwt-svid keys?", td.Name())
	}
	key, ok := domain[p.kid]
	if !ok {
		return nil, nil, refuse(UnknownKey, "trust domain %q has no key %.100q", td.Name(), p.kid)
	}
	if err := fits(p.alg, key); err != nil {
		return nil, nil, err
	}
	jws, err := jose.ParseSignedCompact(token, algorithms)
	if err != nil {
		return nil, nil, refuse(Malformed, "%v", err)
	}
	if _, err := jws.Verify(key); err != nil {
		return nil, nil, refuse(BadSignature, "key %.100q of trust domain %q did not sign it", p.kid, td.Name())
	}
	t := &Token{ID: id, KeyID: p.kid, Algorithm: string(p.alg), payload: p.payload, claims: claims}
	if err := t.read(claims); err != nil {
		return nil, nil, err
	}
	return t, key, nil
}

// fits checks that the algorithm is the key's (RFC 7518 3.1, 3.4): a curve has
// one, an RSA key has all of its own.
func fits(alg jose.SignatureAlgorithm, key publicKey) error {
	ok := false
	switch k := key.(type) {
	case *ecdsa.PublicKey:
		switch alg {
		case jose.ES256:
			ok = k.Curve == elliptic.P256()
		case jose.ES384:
			ok = k.Curve == elliptic.P384()
		case jose.ES512:
			ok = k.Curve == elliptic.P521()
		}
	case *rsa.PublicKey:
		ok = alg[0] == 'R' || alg[0] == 'P'
	}
	if !ok {
		return refuse(WrongAlgorithm, "its alg %s does not fit the key that kid names", alg)
	}
	return nil
}
