package chaincheck

import (
	"bytes"
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
	"sync"

	"golang.org/x/crypto/cryptobyte"
	casn1 "golang.org/x/crypto/cryptobyte/asn1"
)

// CRLSet is certificate revocation lists, parsed once and shared by all
// verifications. It does not change; a new list makes a new set. Signatures
// are checked when a list is first used, once per issuer key.
type CRLSet struct {
	byIssuer map[string][]*list // by raw issuer name, newest number first
}

type list struct {
	crl     *x509.RevocationList // without its entries
	revoked map[string]revokedEntry
	caOnly  bool // issuing distribution point: only CA certificates
	eeOnly  bool // only end-entity certificates

	mu       sync.Mutex
	verified []*listSignature // by issuer key, bounded
}

type listSignature struct {
	spki  []byte
	check sync.Once // of the signature, which takes as long as the list is
	ok    bool      // once checked
}

type revokedEntry struct {
	at     int64 // Unix seconds
	reason int8
}

// maxListKeys bounds the memo of one list.
const maxListKeys = 8

// NewCRLSet parses lists (DER). What cannot be used to decide (does not
// parse, delta, indirect or partitioned lists, unknown critical extensions,
// no number) is left out and named in the error; the set holds the rest and is
// usable even then, since under Require a missing list refuses.
func NewCRLSet(ders [][]byte) (*CRLSet, error) {
	set := &CRLSet{byIssuer: make(map[string][]*list, len(ders))}
	var errs []error
	for n, der := range ders {
		l, err := parseList(der)
		if err != nil {
			errs = append(errs, fmt.Errorf("CRL %d is not used: %w", n, err))
			continue
		}
		issuer := string(l.crl.RawIssuer)
		set.byIssuer[issuer] = append(set.byIssuer[issuer], l)
	}
	for _, lists := range set.byIssuer {
		slices.SortStableFunc(lists, func(a, b *list) int { return b.crl.Number.Cmp(a.crl.Number) })
	}
	return set, errors.Join(errs...)
}

// Last arcs of 2.5.29.x, RFC 5280 5.2 and 5.3.
const (
	extCRLNumber      = 20
	extReasonCode     = 21
	extInvalidityDate = 24
	extDelta          = 27
	extIDP            = 28
)

func parseList(der []byte) (*list, error) {
	crl, err := x509.ParseRevocationList(der)
	if err != nil {
		return nil, err
	}
	l := &list{crl: crl}
	hasNumber := false
	for _, ext := range crl.Extensions {
		switch arc(ext.Id) {
		case extCRLNumber:
			if ext.Critical {
				return nil, errors.New("its number is critical (RFC 5280 5.2.3)")
			}
			hasNumber = true
		case extDelta:
			return nil, errors.New("it is a delta list, which says nothing about what it does not name")
		case extIDP:
			if err := l.parseScope(ext.Value); err != nil {
				return nil, err
			}
		case extAKI:
			if ext.Critical {
				return nil, errors.New("its authority key identifier is critical (RFC 5280 5.2.1)")
			}
		default:
			if ext.Critical {
				return nil, fmt.Errorf("it has the critical extension %s, which is not understood", ext.Id)
			}
		}
	}
	if !hasNumber || crl.Number == nil {
		return nil, errors.New("it has no number (RFC 5280 5.2.3)")
	}
	if crl.NextUpdate.IsZero() {
		return nil, errors.New("it has no next update (RFC 5280 5.1.2.5)")
	}
	if !strongAlgorithm(crl.SignatureAlgorithm) {
		return nil, fmt.Errorf("its signature algorithm %s is not accepted", crl.SignatureAlgorithm)
	}
	l.revoked = make(map[string]revokedEntry, len(crl.RevokedCertificateEntries))
	for i := range crl.RevokedCertificateEntries {
		entry := &crl.RevokedCertificateEntries[i]
		for _, ext := range entry.Extensions {
			if a := arc(ext.Id); ext.Critical && a != extReasonCode && a != extInvalidityDate {
				return nil, fmt.Errorf("its entry for serial %x has the critical extension %s, which is not understood", entry.SerialNumber, ext.Id)
			}
		}
		l.revoked[string(entry.SerialNumber.Bytes())] = revokedEntry{at: entry.RevocationTime.Unix(), reason: int8(min(entry.ReasonCode, 100))}
	}
	// Only what Lookup needs is kept: a list of a million is held once.
	l.crl = &x509.RevocationList{
		RawIssuer: bytes.Clone(crl.RawIssuer), Issuer: crl.Issuer, Number: crl.Number,
		ThisUpdate: crl.ThisUpdate, NextUpdate: crl.NextUpdate, AuthorityKeyId: bytes.Clone(crl.AuthorityKeyId),
		RawTBSRevocationList: crl.RawTBSRevocationList, Signature: crl.Signature, SignatureAlgorithm: crl.SignatureAlgorithm,
	}
	return l, nil
}

// parseScope reads the issuing distribution point (RFC 5280 5.2.5). A list
// for a part of the certificates other than "all CAs" or "all others" would
// need the certificates to name that part, and is not used.
func (l *list) parseScope(der []byte) error {
	input := cryptobyte.String(der)
	var seq cryptobyte.String
	if !input.ReadASN1(&seq, casn1.SEQUENCE) || !input.Empty() {
		return errors.New("its issuing distribution point does not parse")
	}
	for !seq.Empty() {
		var value cryptobyte.String
		var tag casn1.Tag
		if !seq.ReadAnyASN1(&value, &tag) {
			return errors.New("its issuing distribution point does not parse")
		}
		set := len(value) == 1 && value[0] != 0
		switch tag & 0x1f {
		case 1:
			l.eeOnly = set
		case 2:
			l.caOnly = set
		case 4:
			return errors.New("it is an indirect list, signed by someone who did not issue the certificates")
		default:
			return errors.New("it covers only a part of its issuer's certificates (issuing distribution point)")
		}
	}
	if l.eeOnly && l.caOnly {
		return errors.New("its issuing distribution point excludes every certificate")
	}
	return nil
}
