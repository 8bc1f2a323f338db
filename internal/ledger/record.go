// Package ledger answers "what did this trust domain ever sign that may still
// be in use, and when": the issuance journal, durable before a certificate
// leaves the process, and the inventory read from it. It leaves what may be
// signed to package ca.
//
// # Segments
//
// One store value under /legation/v1/<trust domain>/system/segment/<name>
// holds the records of one group commit. Names sort by time. The data of the
// value (kind "segment", version 1) is
//
//	count              uvarint, number of records
//	count × record     uvarint length, payload, CRC-32C of payload (4 bytes, big-endian)
//
// A payload is a sequence of protocol buffer fields (the numbers in
// recordcodec.go); unknown fields are skipped, so that fields can be added.
package ledger

import (
	"net/netip"
	"time"
)

// Kind is what was signed.
type Kind uint8

// The kinds.
const (
	KindX509 Kind = 1
	KindJWT  Kind = 2
)

// Record is one signed credential. What a journal returns is shared: its
// slices must not be changed.
type Record struct {
	Kind      Kind
	Authority string
	Profile   string
	// Serial is lower-case hex; for a JWT its jti.
	Serial    string
	SPIFFEID  string
	Namespace string
	Entry     string // "<namespace>/<name>"
	Node      string
	Instance  string
	// IssuedAt is the wall time of signing.
	IssuedAt  time.Time
	NotBefore time.Time
	NotAfter  time.Time
	DNSNames  []string
	IPs       []netip.Addr
	Audience  []string // JWT only
	// SHA256 of the certificate's DER or of the compact token.
	SHA256 [32]byte
	// KeySHA256 of the SubjectPublicKeyInfo; zero for a JWT.
	KeySHA256 [32]byte
	// LifetimeReason says why NotAfter is what it is.
	LifetimeReason string
}

// Segment is one group commit.
type Segment struct {
	Name     string
	Revision int64 // of the store at its commit
	Records  []Record
}
