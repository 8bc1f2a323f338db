// Package svid keeps this machine's identities: it makes keys, has them
// signed in batches, renews them before they end, serves them while the
// control plane is away, and wakes whoever waits for a new one.
package svid

import (
	"crypto"
	"net/netip"
	"time"

	nodev1 "github.com/legation-io/legation/api/node/v1"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// Instance says whose key it is: a session, or, for a bare process, its uid.
// Each (entry, instance) has its own key and certificate.
type Instance string

// SVID is one X.509-SVID with its key, immutable.
type SVID struct {
	ID       spiffeid.ID
	Entry    *nodev1.Entry
	Instance Instance
	// Chain is leaf first, DER; no root.
	Chain [][]byte
	// Key signs; KeyPKCS8 is the same key for those who must be handed it
	// (Workload API, SDS). Never logged, never written unsealed. KeyPKCS8
	// lies in locked memory that is wiped when nobody holds the SVID any
	// more: hold the SVID, or copy what must outlive it.
	Key       crypto.Signer
	KeyPKCS8  []byte
	Serial    string // lower-case hex
	NotBefore time.Time
	NotAfter  time.Time
	RenewAt   time.Time

	addresses []netip.Addr // IP SANs, sorted
	keep      *lockedKey   // owns KeyPKCS8
}

// Trust is what verifies peers: roots and CRLs as of one moment, immutable.
type Trust struct {
	TrustDomain string
	// Roots by trust domain name, DER.
	Roots map[string][][]byte
	// JWKS by trust domain name, JSON.
	JWKS map[string][]byte
	// CRLs by trust domain name, DER CertificateLists.
	CRLs map[string][][]byte
	// CRLNumber by authority.
	CRLNumber map[string]uint64
}

// Update is everything one caller may have, as of one moment. A new Update
// follows each change.
type Update struct {
	// SVIDs sorted by entry name; the first is the default.
	SVIDs []*SVID
	Trust *Trust
	// Pending names entries that match and have no SVID yet, with why.
	Pending map[string]error
}
