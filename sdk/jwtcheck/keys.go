package jwtcheck

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/rsa"
	"encoding/json"
	"fmt"

	"github.com/go-jose/go-jose/v4"
	"github.com/spiffe/go-spiffe/v2/bundle/jwtbundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// publicKey is an *ecdsa.PublicKey or an *rsa.PublicKey.
type publicKey interface{ Equal(crypto.PublicKey) bool }

// Bundle is the keys that one trust domain signs JWT-SVIDs with. It never
// changes.
type Bundle struct {
	domain spiffeid.TrustDomain
	keys   map[string]publicKey
}

// Bounds on a JWK set.
const (
	maxSetBytes = 1 << 20
	maxKeys     = 256
)

// ParseBundle reads a SPIFFE bundle (SPIFFE Trust Domain and Bundle 4; JWT-SVID
// 6.2): keys count whose use is jwt-svid and that have a kid. What cannot
// verify JWT-SVIDs is left out; a set with no such key trusts nobody.
func ParseBundle(td spiffeid.TrustDomain, jwks []byte) (*Bundle, error) {
	return parse(td, jwks, false)
}

// ParseWorkloadAPI reads a JWK set as FetchJWTBundles returns it (SPIFFE
// Workload API 6.2.2): it has JWT keys only, so that a key may leave out its
// use, as SPIRE's do.
func ParseWorkloadAPI(td spiffeid.TrustDomain, jwks []byte) (*Bundle, error) {
	return parse(td, jwks, true)
}

// FromBundle takes go-spiffe's bundle. Keys too weak to count are left out.
func FromBundle(b *jwtbundle.Bundle) *Bundle {
	out := &Bundle{domain: b.TrustDomain(), keys: map[string]publicKey{}}
	for kid, key := range b.JWTAuthorities() {
		if pub, ok := usable(key); ok && kid != "" {
			out.keys[kid] = pub
		}
	}
	return out
}

// TrustDomain is whose keys these are.
func (b *Bundle) TrustDomain() spiffeid.TrustDomain { return b.domain }

// Len is how many keys there are.
func (b *Bundle) Len() int { return len(b.keys) }

func parse(td spiffeid.TrustDomain, jwks []byte, anyUse bool) (*Bundle, error) {
	b := &Bundle{domain: td, keys: map[string]publicKey{}}
	if len(jwks) == 0 {
		return b, nil
	}
	if len(jwks) > maxSetBytes {
		return nil, fmt.Errorf("the JWK set of %s has %d bytes, more than %d", td, len(jwks), maxSetBytes)
	}
	var set struct {
		Keys []json.RawMessage `json:"keys"`
	}
	if err := json.Unmarshal(jwks, &set); err != nil {
		return nil, fmt.Errorf("the JWK set of %s: %w", td, err)
	}
	if len(set.Keys) > maxKeys {
		return nil, fmt.Errorf("the JWK set of %s has %d keys, more than %d", td, len(set.Keys), maxKeys)
	}
	for _, raw := range set.Keys {
		var k jose.JSONWebKey
		if err := k.UnmarshalJSON(raw); err != nil {
			continue // of a kind that is not known here
		}
		if k.KeyID == "" || !k.Valid() || !k.IsPublic() {
			continue
		}
		if k.Use != "jwt-svid" && !(anyUse && k.Use == "") {
			continue
		}
		pub, ok := usable(k.Key)
		if _, taken := b.keys[k.KeyID]; ok && !taken {
			b.keys[k.KeyID] = pub
		}
	}
	return b, nil
}

func usable(key any) (publicKey, bool) {
	switch pub := key.(type) {
	case *ecdsa.PublicKey:
		return pub, true
	case *rsa.PublicKey:
		if bits := pub.N.BitLen(); bits < 2048 || bits > 8192 {
			return nil, false
		}
		return pub, true
	}
	return nil, false
}

// Keys are the bundles of all trust domains that are believed at one moment.
// It never changes; a change makes a new one. A key speaks for its own domain
// only, whatever other domain has a key with the same id.
type Keys struct {
	byDomain map[string]map[string]publicKey
}

// NewKeys joins bundles. Of two for one trust domain the last counts.
func NewKeys(bundles ...*Bundle) *Keys {
	k := &Keys{byDomain: make(map[string]map[string]publicKey, len(bundles))}
	for _, b := range bundles {
		k.byDomain[b.domain.Name()] = b.keys
	}
	return k
}

func (k *Keys) domain(td spiffeid.TrustDomain) (map[string]publicKey, bool) {
	if k == nil {
		return nil, false
	}
	d, ok := k.byDomain[td.Name()]
	return d, ok
}

// has reports whether the key still is the domain's.
func (k *Keys) has(td spiffeid.TrustDomain, kid string, key publicKey) bool {
	d, _ := k.domain(td)
	now, ok := d[kid]
	return ok && (now == key || now.Equal(key))
}

// A Source has the keys that are believed right now.
type Source interface {
	// Keys never blocks; nil or an error trusts nobody. The same keys are the
	// same pointer for as long as they do not change.
	Keys() (*Keys, error)
}

// Static is a Source of keys that never change.
type Static struct{ K *Keys }

// Keys implements Source.
func (s Static) Keys() (*Keys, error) { return s.K, nil }
