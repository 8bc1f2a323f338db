package holder

import (
	"bytes"
	"crypto/x509"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/legation-io/legation/sdk/chaincheck"
)

// believeLocked takes roots and lists in. What did not change keeps its
// pointers, so that verdicts cached by them live on, and lists are parsed once.
func (h *Holder) believeLocked(a *Answer) {
	old := h.heldLocked()
	roots, crls := old.Roots, old.CRLs
	if roots == nil || !maps.EqualFunc(roots, a.Roots, sameRoots) {
		roots = make(chaincheck.Roots, len(a.Roots))
		for domain, fresh := range a.Roots {
			if held := old.Roots[domain]; held != nil && sameRoots(held, fresh) {
				fresh = held
			}
			roots[domain] = fresh
		}
	}
	if crls == nil || !slices.EqualFunc(h.crls, a.CRLs, bytes.Equal) {
		fresh, err := chaincheck.NewCRLSet(a.CRLs)
		if err == nil {
			h.good = a.CRLs
		} else {
			h.droppedLocked("crl", err)
			// Of an issuer whose new list cannot be read the last one stays:
			// the highest number decides.
			fresh, _ = chaincheck.NewCRLSet(slices.Concat(a.CRLs, h.good))
		}
		crls, h.crls = fresh, a.CRLs
	}
	if h.trust == nil || crls != old.CRLs || !kept(roots, old.Roots) {
		h.trust = &chaincheck.Trust{Roots: roots, CRLs: crls, Denied: old.Denied}
	}
}

func (h *Holder) heldLocked() *chaincheck.Trust {
	if h.trust == nil {
		return &chaincheck.Trust{}
	}
	return h.trust
}

func sameRoots(a, b []*x509.Certificate) bool {
	return slices.EqualFunc(a, b, func(x, y *x509.Certificate) bool { return bytes.Equal(x.Raw, y.Raw) })
}

// kept reports whether all roots are the very ones of before.
func kept(a, b chaincheck.Roots) bool {
	return len(a) == len(b) && maps.EqualFunc(a, b, func(x, y []*x509.Certificate) bool {
		return len(x) == len(y) && (len(x) == 0 || &x[0] == &y[0])
	})
}

// Revocation is one element of a legation.workload.v1.RevocationSet.
type Revocation struct {
	SPIFFEID string
	Serials  []string
	Reason   string
	At       time.Time
}

// maxDenials bounds a set; more than an authority revokes, and 250 MB.
const maxDenials = 1 << 20

// Denied takes a whole set in. What of it cannot be read is left out and told:
// an old set would acquit what was revoked since.
func (h *Holder) Denied(all []Revocation) {
	h.mu.Lock()
	defer h.mu.Unlock()
	var denials []chaincheck.Denial
	for _, r := range all {
		if r.SPIFFEID != "" {
			id, err := spiffeid.FromString(r.SPIFFEID)
			if err != nil {
				h.droppedLocked("revocation", fmt.Errorf("%.300q is no SPIFFE ID: %w", r.SPIFFEID, err))
			} else {
				denials = append(denials, chaincheck.Denial{ID: id, Reason: r.Reason, At: r.At})
			}
		}
		for _, serial := range r.Serials {
			denials = append(denials, chaincheck.Denial{Serial: serial, Reason: r.Reason, At: r.At})
		}
	}
	if len(denials) > maxDenials {
		h.droppedLocked("revocation", fmt.Errorf("%d denials are more than the %d that are held; the rest is left to CRLs", len(denials), maxDenials))
		// Identities come first: no CRL names them.
		slices.SortStableFunc(denials, func(a, b chaincheck.Denial) int {
			return boolRank(a.ID.IsZero()) - boolRank(b.ID.IsZero())
		})
		denials = denials[:maxDenials]
	}
	set, err := chaincheck.NewDenySet(denials)
	if err != nil {
		h.droppedLocked("revocation", err)
	}
	h.status.Denials = set.Len()
	h.ungateLocked()
	held := h.heldLocked()
	h.trust = &chaincheck.Trust{Roots: held.Roots, CRLs: held.CRLs, Denied: set}
	h.publishLocked()
}

func boolRank(b bool) int {
	if b {
		return 1
	}
	return 0
}

// NotOffered is what a socket without such a service comes to.
func (h *Holder) NotOffered() {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.status.Denials >= 0 {
		h.p.Log.Warn("the Workload API no longer tells what was revoked; what it told last stays denied", "workload_api", h.p.Name, "denials", h.status.Denials)
		return
	}
	h.ungateLocked()
	h.publishLocked()
}

func (h *Holder) ungateLocked() { h.gated = false }
