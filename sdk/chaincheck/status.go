package chaincheck

import (
	"fmt"
	"math/big"
	"time"
)

// Status is what is known of a certificate's revocation.
type Status int

// The statuses.
const (
	StatusNotChecked Status = iota // trust anchors, and everything under Off
	StatusGood                     // a current list or OCSP answer acquits it
	StatusRevoked
	StatusUnknown // nothing is here that can decide
)

// String is a label: not_checked, good, revoked, unknown.
func (s Status) String() string {
	switch s {
	case StatusGood:
		return "good"
	case StatusRevoked:
		return "revoked"
	case StatusUnknown:
		return "unknown"
	}
	return "not_checked"
}

// Source is what decided a Status, as a label.
type Source string

// The sources, in the order of trust put into their saying yes. Any of them
// saying no is final.
const (
	SourceNone    Source = ""         // nothing decided
	SourceDenySet Source = "deny_set" // only ever says no
	SourceCRL     Source = "crl"      // RFC 5280 5
	SourceStaple  Source = "staple"   // RFC 6066 8, RFC 8446 4.4.2.1
	SourceOCSP    Source = "ocsp"     // RFC 6960, asked for, or remembered
)

// Revocation explains a Status.
type Revocation struct {
	Status Status
	// Source is what decided.
	Source Source
	// Number is of the list that decided; else nil.
	Number *big.Int
	// Responder says in words who gave the OCSP answer that decided; else
	// empty.
	Responder string
	// ThisUpdate and NextUpdate are of the list or answer that decided.
	ThisUpdate, NextUpdate time.Time
	// RevokedAt and Reason (RFC 5280 5.3.1) are set when revoked.
	RevokedAt time.Time
	Reason    int
	// Why says what is wrong with what is here when Unknown, and what was
	// denied and why when the deny set decided.
	Why string

	until    time.Time // the last second in which Good holds
	disowned bool      // a genuine, current OCSP answer says "unknown"
}

// String is the explanation in words.
func (r Revocation) String() string {
	by := "OCSP answer of " + r.Responder
	switch r.Source {
	case SourceCRL:
		by = "CRL " + r.Number.String()
	case SourceStaple:
		by = "stapled " + by
	case SourceDenySet:
		return r.Why
	}
	switch r.Status {
	case StatusGood:
		return fmt.Sprintf("not revoked by %s, current until %s", by, stamp(r.NextUpdate))
	case StatusRevoked:
		return fmt.Sprintf("revoked at %s (%s) by %s", stamp(r.RevokedAt), reasonName(r.Reason), by)
	case StatusUnknown:
		return "revocation unknown: " + r.Why
	}
	return "revocation not checked"
}

func reasonName(code int) string {
	names := [...]string{"unspecified", "keyCompromise", "cACompromise", "affiliationChanged", "superseded", "cessationOfOperation", "certificateHold", "", "removeFromCRL", "privilegeWithdrawn", "aACompromise"}
	if code < 0 || code >= len(names) || names[code] == "" {
		return fmt.Sprintf("reason %d", code)
	}
	return names[code]
}

// certificateHold is the one reason that may be taken back (RFC 5280 5.3.1).
const certificateHold = 6
