package ca

import (
	"net/netip"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// Profile is a kind of certificate, linted before the authority's key signs
// the first of it.
type Profile string

// The profiles.
const (
	ProfileWorkload Profile = "workload" // client and server authentication
	ProfileAgent    Profile = "agent"
	ProfileServer   Profile = "server"
	ProfileOperator Profile = "operator"
)

// X509Request asks for one X.509-SVID. Whoever calls has authorised ID for
// the caller; the authority checks the CSR against it.
type X509Request struct {
	Profile Profile
	// CSR is PKCS #10 DER. Its signature proves possession. Its only URI SAN,
	// if any, must be ID; everything else in it but the public key is ignored.
	CSR []byte
	ID  spiffeid.ID
	// TTL asked for by the entry; 0 is the default.
	TTL      time.Duration
	DNSNames []string
	IPs      []netip.Addr
	// For the journal.
	Namespace string
	Entry     string // "<namespace>/<name>"
	Node      string
	Instance  string
}

// X509Result is the outcome of one request of a batch: Chain, or Err.
type X509Result struct {
	// Chain is leaf first, then the issuing CA, DER; no root.
	Chain     [][]byte
	Serial    string // lower-case hex
	NotBefore time.Time
	NotAfter  time.Time
	// LifetimeReason says why NotAfter is what it is, e.g. "entry asks 1h0m0s".
	LifetimeReason string
	// Err has a fault kind; Denied when the identity is blocked.
	Err error
}

// JWTRequest asks for one JWT-SVID.
type JWTRequest struct {
	ID       spiffeid.ID
	Audience []string
	// Ext becomes the claim "ext"; names [a-z0-9_.-]{1,64} that are no
	// registered claim's, at most 16, values at most 4,096 bytes together.
	Ext       map[string]string
	TTL       time.Duration
	Namespace string
	Entry     string
	Node      string
	Instance  string
}

// JWTResult is a signed JWT-SVID.
type JWTResult struct {
	Token     string
	IssuedAt  time.Time
	ExpiresAt time.Time
}

// RevokeRequest names what to take away: exactly one of Serial, ID, Node.
type RevokeRequest struct {
	Serial string // full lower-case hex
	ID     spiffeid.ID
	Node   string
	Reason string
	Actor  string // who asked, for the audit trail
}
