package workloadapi

import (
	"github.com/legation-io/legation/internal/agent/svid"
	"github.com/legation-io/legation/sdk/jwtcheck"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// keySet is a Trust's JWK sets, parsed once.
type keySet struct {
	trust *svid.Trust
	keys  *jwtcheck.Keys
}

func (s *Server) keysOf(trust *svid.Trust) *jwtcheck.Keys {
	if k := s.keys.Load(); k != nil && k.trust == trust {
		return k.keys
	}
	var bundles []*jwtcheck.Bundle
	for name, jwks := range trust.JWKS {
		td, err := spiffeid.TrustDomainFromString(name)
		if err == nil {
			var b *jwtcheck.Bundle
			if b, err = jwtcheck.ParseBundle(td, jwks); err == nil {
				bundles = append(bundles, b)
			}
		}
		if err != nil {
			s.log.Warn("the JWT keys of a trust domain cannot be used; its tokens are refused", "trust_domain", name, "error", err)
		}
	}
	k := &keySet{trust, jwtcheck.NewKeys(bundles...)}
	s.keys.Store(k)
	return k.keys
}
