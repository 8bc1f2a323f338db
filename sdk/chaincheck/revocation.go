package chaincheck

import (
	"bytes"
	"crypto/x509"
	"fmt"
	"time"
)

// maxEarly is how far a list's thisUpdate may lie ahead of our clock: the
// longest clock error that certificates tolerate too. A list from the future
// knows more, not less.
const maxEarly = 5 * time.Minute

// Lookup says what the lists know of child, which issuer signed. The newest
// genuine list of the issuer decides. work may be nil.
func (set *CRLSet) Lookup(child, issuer *x509.Certificate, now time.Time, work *Work) Revocation {
	if work == nil {
		work = &Work{}
	}
	r, found := set.find(child, issuer, now, work)
	if !found {
		return noList(issuer)
	}
	return r
}

func noList(issuer *x509.Certificate) Revocation {
	return unknown("no CRL of %s is here", describeIssuer(issuer))
}

// find is Lookup without words where no list speaks of child.
func (set *CRLSet) find(child, issuer *x509.Certificate, now time.Time, work *Work) (r Revocation, found bool) {
	if set == nil {
		return Revocation{Status: StatusUnknown}, false
	}
	r.Status = StatusUnknown
	for _, l := range set.byIssuer[string(issuer.RawSubject)] {
		if l.eeOnly && child.IsCA || l.caOnly && !child.IsCA {
			continue
		}
		if problem := l.genuine(issuer, work); problem != "" {
			if !found {
				r, found = unknown("CRL %s of %s %s", l.crl.Number, describeIssuer(issuer), problem), true
			}
			continue
		}
		return l.decide(child, now), true
	}
	return r, found
}

func describeIssuer(issuer *x509.Certificate) string { return fmt.Sprintf("%.128q", issuer.Subject) }

func unknown(format string, args ...any) Revocation {
	return Revocation{Status: StatusUnknown, Why: fmt.Sprintf(format, args...)}
}

// decide looks the certificate up in a genuine list. An expired list still
// revokes; it no longer acquits.
func (l *list) decide(child *x509.Certificate, now time.Time) Revocation {
	r := Revocation{Source: SourceCRL, Number: l.crl.Number, ThisUpdate: l.crl.ThisUpdate, NextUpdate: l.crl.NextUpdate}
	// RFC 5280 serials have at most 20 octets; the buffer stays on the stack.
	var buffer [20]byte
	if child.SerialNumber != nil && child.SerialNumber.BitLen() <= len(buffer)*8 {
		serial := bytes.TrimLeft(child.SerialNumber.FillBytes(buffer[:]), "\x00")
		if entry, ok := l.revoked[string(serial)]; ok {
			r.Status, r.RevokedAt, r.Reason = StatusRevoked, time.Unix(entry.at, 0).UTC(), int(entry.reason)
			return r
		}
	}
	switch {
	case now.After(l.crl.NextUpdate):
		r.Status, r.Why = StatusUnknown, fmt.Sprintf("CRL %s of %.128q expired %s, it is %s here", l.crl.Number, l.crl.Issuer, stamp(l.crl.NextUpdate), stamp(now))
	case l.crl.ThisUpdate.After(now.Add(maxEarly)):
		r.Status, r.Why = StatusUnknown, fmt.Sprintf("CRL %s of %.128q is from %s, it is %s here", l.crl.Number, l.crl.Issuer, stamp(l.crl.ThisUpdate), stamp(now))
	default:
		r.Status, r.until = StatusGood, l.crl.NextUpdate
	}
	return r
}

// genuine returns "" when the issuer signed the list and may (RFC 5280 6.3.3
// f, g), else what is wrong.
func (l *list) genuine(issuer *x509.Certificate, work *Work) string {
	switch {
	case issuer.KeyUsage&x509.KeyUsageCRLSign == 0:
		return "does not count: its issuer's key usage lacks cRLSign"
	case len(l.crl.AuthorityKeyId) > 0 && !bytes.Equal(l.crl.AuthorityKeyId, issuer.SubjectKeyId):
		return "is signed by another key of that name"
	}
	m := l.memo(issuer.RawSubjectPublicKeyInfo)
	m.check.Do(func() {
		work.Signatures++
		m.ok = issuer.CheckSignature(l.crl.SignatureAlgorithm, l.crl.RawTBSRevocationList, l.crl.Signature) == nil
	})
	if m.ok {
		return ""
	}
	return "has a signature that its issuer's key did not make"
}

// memo returns what is remembered of an issuer key, or is to be found out.
func (l *list) memo(spki []byte) *listSignature {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, m := range l.verified {
		if bytes.Equal(m.spki, spki) {
			return m
		}
	}
	m := &listSignature{spki: spki}
	if len(l.verified) < maxListKeys {
		l.verified = append(l.verified, m)
	}
	return m
}
