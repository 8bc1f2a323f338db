package chaincheck

import (
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"fmt"
	"strings"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// Explanation is a verdict as data, for logs, tools and people. Its JSON
// fields are only ever added to. Names in it are a stranger's words, quoted
// and cut.
type Explanation struct {
	Accepted bool `json:"accepted"`
	// ID or Host is what was verified; both empty in a refusal.
	ID   string `json:"id,omitempty"`
	Host string `json:"host,omitempty"`
	// Cause and Detail are why it was refused, Fault the certificate at fault.
	Cause  Cause  `json:"cause,omitempty"`
	Detail string `json:"detail,omitempty"`
	Fault  string `json:"fault,omitempty"`
	// Links are leaf first: the path, or as far as one was found.
	Links []LinkExplanation `json:"links,omitempty"`
	// Anchors are the roots that a path could have ended in; of a refusal only.
	Anchors []string `json:"anchors,omitempty"`
	Work    Work     `json:"work,omitzero"`
}

// LinkExplanation is one certificate of a path.
type LinkExplanation struct {
	// Certificate names it: its URI or subject, and its serial in hex.
	Certificate string `json:"certificate"`
	// SHA256 of the certificate, in hex.
	SHA256 string `json:"sha256"`
	// Issuer names the certificate whose key signed it; empty for the last.
	Issuer    string    `json:"issuer,omitempty"`
	Signature string    `json:"signature"`
	NotBefore time.Time `json:"not_before"`
	NotAfter  time.Time `json:"not_after"`
	// Anchor tells that it is a root.
	Anchor     bool                  `json:"anchor,omitempty"`
	Revocation RevocationExplanation `json:"revocation,omitzero"`
}

// RevocationExplanation is a Revocation as data.
type RevocationExplanation struct {
	Status     string    `json:"status"`
	Source     Source    `json:"source,omitempty"`
	CRLNumber  string    `json:"crl_number,omitempty"`
	Responder  string    `json:"responder,omitempty"`
	ThisUpdate time.Time `json:"this_update,omitzero"`
	NextUpdate time.Time `json:"next_update,omitzero"`
	RevokedAt  time.Time `json:"revoked_at,omitzero"`
	Reason     string    `json:"reason,omitempty"`
	Why        string    `json:"why,omitempty"`
}

// Explain returns the verdict as data.
func (r *Result) Explain() Explanation {
	x := Explanation{Accepted: true, Host: r.Host, Work: r.Work}
	if r.ID != (spiffeid.ID{}) {
		x.ID = r.ID.String()
	}
	for _, l := range r.Links {
		link := explainLink(l.Certificate, l.Issuer)
		link.Anchor = l.Issuer == nil
		link.Revocation = l.Revocation.explain()
		x.Links = append(x.Links, link)
	}
	return x
}

// Explain returns the refusal as data.
func (e *Error) Explain() Explanation {
	x := Explanation{Cause: e.Cause, Detail: e.Detail, Fault: e.Subject, Work: e.Work}
	for i, cert := range e.Path {
		var issuer *x509.Certificate
		if i+1 < len(e.Path) {
			issuer = e.Path[i+1]
		}
		link := explainLink(cert, issuer)
		for _, anchor := range e.Anchors {
			link.Anchor = link.Anchor || i > 0 && issuer == nil && anchor == cert
		}
		if cert == e.Certificate && e.Revocation.Status != StatusNotChecked {
			link.Revocation = e.Revocation.explain()
		}
		x.Links = append(x.Links, link)
	}
	for n, anchor := range e.Anchors {
		if n == maxPresented {
			x.Anchors = append(x.Anchors, fmt.Sprintf("and %d more", len(e.Anchors)-n))
			break
		}
		x.Anchors = append(x.Anchors, describe(anchor))
	}
	return x
}

func explainLink(cert, issuer *x509.Certificate) LinkExplanation {
	sum := sha256.Sum256(cert.Raw)
	link := LinkExplanation{
		Certificate: describe(cert), SHA256: hex.EncodeToString(sum[:]), Signature: cert.SignatureAlgorithm.String(),
		NotBefore: cert.NotBefore.UTC(), NotAfter: cert.NotAfter.UTC(),
	}
	if issuer != nil {
		link.Issuer = describe(issuer)
	}
	return link
}

func (r Revocation) explain() RevocationExplanation {
	x := RevocationExplanation{Status: r.Status.String(), Source: r.Source, Responder: r.Responder, ThisUpdate: r.ThisUpdate.UTC(), NextUpdate: r.NextUpdate.UTC(), Why: r.Why}
	if r.Number != nil {
		x.CRLNumber = r.Number.String()
	}
	if r.Status == StatusRevoked {
		x.RevokedAt = r.RevokedAt.UTC()
		if r.Source != SourceDenySet {
			x.Reason = reasonName(r.Reason)
		}
	}
	return x
}

// String is the explanation in words, a line for the verdict and one for each
// link.
func (x Explanation) String() string {
	var b strings.Builder
	switch {
	case x.Accepted:
		fmt.Fprintf(&b, "accepted: %s", x.ID+x.Host)
	case x.Fault != "":
		fmt.Fprintf(&b, "refused (%s): %s: %s", x.Cause, x.Fault, x.Detail)
	default:
		fmt.Fprintf(&b, "refused (%s): %s", x.Cause, x.Detail)
	}
	for i, l := range x.Links {
		fmt.Fprintf(&b, "\n  %d. %s", i, l.words())
	}
	for _, anchor := range x.Anchors {
		fmt.Fprintf(&b, "\n  root: %s", anchor)
	}
	return b.String()
}

func (l LinkExplanation) words() string {
	s := l.Certificate
	switch {
	case l.Anchor:
		s += " is a trust anchor"
	case l.Issuer != "":
		s += " was signed by " + l.Issuer + " with " + l.Signature
	default:
		s += ", whose issuer was not found or did not count"
	}
	s += ", valid " + stamp(l.NotBefore) + " to " + stamp(l.NotAfter)
	r := l.Revocation
	switch {
	case r.Status == "" || r.Status == StatusNotChecked.String():
		return s
	case r.Source == SourceDenySet:
		return s + "; denied: " + r.Why
	}
	s += "; revocation " + r.Status
	switch r.Source {
	case SourceCRL:
		s += " by CRL " + r.CRLNumber
	case SourceStaple:
		s += " by the stapled OCSP response of " + r.Responder
	case SourceOCSP:
		s += " by the OCSP answer of " + r.Responder
	}
	if r.Reason != "" {
		s += fmt.Sprintf(" at %s (%s)", stamp(r.RevokedAt), r.Reason)
	}
	if r.Status == StatusGood.String() {
		s += ", current until " + stamp(r.NextUpdate)
	}
	if r.Why != "" {
		s += ": " + r.Why
	}
	return s
}
