package ca

import (
	"crypto"
	"crypto/rand"
	"crypto/x509"
	"math/big"
	"time"
)

// Reason codes, RFC 5280 5.3.1.
const (
	reasonUnspecified = 0
	reasonSuperseded  = 4
)

// signCRL signs a full CRL (RFC 5280 5) whose nextUpdate is its CA's
// notAfter: an Envoy with an expired CRL refuses everyone, so freshness is
// the heartbeat's matter. thisUpdate is back-dated for verifiers whose clock
// is behind.
func signCRL(issuer *x509.Certificate, key crypto.Signer, number uint64, now time.Time, entries []crlEntry) ([]byte, error) {
	list := make([]x509.RevocationListEntry, len(entries))
	for i, e := range entries {
		serial, ok := new(big.Int).SetString(e.Serial, 16)
		if !ok {
			return nil, errSerial(e.Serial)
		}
		// Back-dated like thisUpdate: nothing is revoked after its list was made.
		list[i] = x509.RevocationListEntry{SerialNumber: serial, RevocationTime: e.RevokedAt.Add(-minBackdate), ReasonCode: e.Reason}
	}
	return x509.CreateRevocationList(rand.Reader, &x509.RevocationList{
		Number:                    new(big.Int).SetUint64(number),
		ThisUpdate:                now.Add(-minBackdate).UTC().Truncate(time.Second),
		NextUpdate:                issuer.NotAfter,
		RevokedCertificateEntries: list,
	}, issuer, key)
}

// nextCRL signs the list after prev with more entries. Entries leave only
// when expired for longer than the grace: no unexpired serial is ever dropped.
func (a *Authority) nextCRL(prev *crlObject, add []crlEntry, now time.Time) (*crlObject, error) {
	next := &crlObject{Number: prev.Number + 1, Root: prev.Root}
	next.Entries = make([]crlEntry, 0, len(prev.Entries)+len(add))
	_, clockErr := a.guard.Check()
	for _, e := range prev.Entries {
		// A clock that is not believed must not make a certificate look expired.
		if clockErr == nil && e.NotAfter.Add(a.life.CRLGrace).Before(now) {
			continue
		}
		next.Entries = append(next.Entries, e)
	}
	next.Entries = append(next.Entries, add...)
	var err error
	next.Issuing, err = signCRL(a.issuing, a.issuingKey, next.Number, now, next.Entries)
	if err != nil {
		return nil, err
	}
	return next, nil
}
