package svid

import (
	"maps"
	"slices"

	"github.com/legation-io/legation/internal/agent/upstream"
)

// trustOf returns the old Trust itself when nothing in it changed, so that a
// View with a new heartbeat wakes nobody.
func trustOf(view *upstream.View, old *Trust) *Trust {
	t := &Trust{
		TrustDomain: view.TrustDomain,
		Roots:       make(map[string][][]byte, len(view.Bundles)),
		JWKS:        make(map[string][]byte, len(view.Bundles)),
		CRLs:        map[string][][]byte{},
		CRLNumber:   make(map[string]uint64, len(view.CRLs)),
	}
	for td, b := range view.Bundles {
		t.Roots[td] = b.X509Roots
		t.JWKS[td] = b.Jwks
	}
	// Every authority known here is of the agent's own trust domain.
	for _, name := range slices.Sorted(maps.Keys(view.CRLs)) {
		crl := view.CRLs[name]
		t.CRLs[view.TrustDomain] = append(t.CRLs[view.TrustDomain], crl.Lists...)
		t.CRLNumber[name] = crl.Number
	}
	if t.equal(old) {
		return old
	}
	return t
}

func (t *Trust) equal(o *Trust) bool {
	same := func(a, b []byte) bool { return string(a) == string(b) }
	lists := func(a, b [][]byte) bool { return slices.EqualFunc(a, b, same) }
	return t.TrustDomain == o.TrustDomain &&
		maps.Equal(t.CRLNumber, o.CRLNumber) &&
		maps.EqualFunc(t.Roots, o.Roots, lists) &&
		maps.EqualFunc(t.CRLs, o.CRLs, lists) &&
		maps.EqualFunc(t.JWKS, o.JWKS, same)
}
