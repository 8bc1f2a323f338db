package holder

import (
	"bytes"
	"crypto/x509"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/legation-io/legation/sdk/chaincheck"
)

// readLists parses lists that are not those of the last answer, once, and
// returns what could not be read.
func (h *Holder) readLists(ders [][]byte) (*chaincheck.CRLSet, error) {
	if h.lists != nil && slices.EqualFunc(h.crls, ders, bytes.Equal) {
		return h.lists, nil
	}
	set, err := chaincheck.NewCRLSet(ders)
	if err == nil {
		h.good = ders
	} else {
		// Of an issuer whose new list cannot be read the last one stays:
		// the highest number decides.
		set, _ = chaincheck.NewCRLSet(slices.Concat(ders, h.good))
	}
	h.lists, h.crls = set, ders
	return set, err
}

// believeLocked takes roots and lists in. What did not change keeps its
// pointers, so that verdicts cached by them live on.
func (h *Holder) believeLocked(fresh chaincheck.Roots, crls *chaincheck.CRLSet) {
	old := h.heldLocked()
	roots := old.Roots
	if roots == nil || !maps.EqualFunc(roots, fresh, sameRoots) {
		roots = make(chaincheck.Roots, len(fresh))
		for domain, certs := range fresh {
			if held := old.Roots[domain]; held != nil && sameRoots(held, certs) {
				certs = held
			}
			roots[domain] = certs
		}
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
	set, dropped := denySet(all)
	h.mu.Lock()
	defer h.unlock()
	for _, err := range dropped {
		h.droppedLocked("revocation", err)
	}
	h.status.Denials = set.Len()
	h.gated = false
	held := h.heldLocked()
	h.trust = &chaincheck.Trust{Roots: held.Roots, CRLs: held.CRLs, Denied: set}
	h.publishLocked()
}

func denySet(all []Revocation) (set *chaincheck.DenySet, dropped []error) {
	var denials, serials []chaincheck.Denial
	unread := 0
	for _, r := range all {
		if r.SPIFFEID != "" {
			id, err := spiffeid.FromString(r.SPIFFEID)
			if err == nil {
				denials = append(denials, chaincheck.Denial{ID: id, Reason: r.Reason, At: r.At})
			} else if unread++; unread <= 16 {
				dropped = append(dropped, fmt.Errorf("%.300q is no SPIFFE ID: %w", r.SPIFFEID, err))
			}
		}
		for _, serial := range r.Serials {
			serials = append(serials, chaincheck.Denial{Serial: serial, Reason: r.Reason, At: r.At})
		}
	}
	if unread > 16 {
		dropped = append(dropped, fmt.Errorf("and %d more are no SPIFFE IDs", unread-16))
	}
	// Identities come first: no CRL names them.
	denials = append(denials, serials...)
	if len(denials) > maxDenials {
		dropped = append(dropped, fmt.Errorf("%d denials are more than the %d that are held; the rest is left to CRLs", len(denials), maxDenials))
		denials = denials[:maxDenials]
	}
	set, err := chaincheck.NewDenySet(denials)
	if err != nil {
		dropped = append(dropped, err)
	}
	return set, dropped
}

// NotOffered is what a socket without such a service comes to.
func (h *Holder) NotOffered() {
	h.mu.Lock()
	defer h.unlock()
	if h.status.Denials >= 0 {
		h.sayLocked(slog.LevelWarn, "the Workload API no longer tells what was revoked; what it told last stays denied", "workload_api", h.p.Name, "denials", h.status.Denials)
		return
	}
	h.gated = false
	h.publishLocked()
}
