package ca

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/asn1"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// lintOnce remembers that a profile was found good. A failure is tried again.
type lintOnce struct {
	mu   sync.Mutex // guards good
	good bool
}

// lintOnce signs a certificate of the profile with a throw-away CA and lints
// it before the authority's key signs the first of that profile.
func (a *Authority) lintOnce(profile Profile, now time.Time) error {
	l := &a.linted[slices.Index(profiles[:], profile)]
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.good {
		return nil
	}
	if err := a.lintProfile(profile, now); err != nil {
		return fmt.Errorf("profile %s is not fit to be signed: %w", profile, err)
	}
	l.good = true
	return nil
}

func (a *Authority) lintProfile(profile Profile, now time.Time) error {
	caKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	throwAway, err := a.newCA(caParams{
		name: "Legation throw-away CA", public: caKey.Public(), signer: caKey,
		notBefore: now.Add(-caBackdate), notAfter: now.Add(time.Hour), pathLen: 0,
	})
	if err != nil {
		return err
	}
	leafKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	spki, err := x509.MarshalPKIXPublicKey(leafKey.Public())
	if err != nil {
		return err
	}
	ski, err := keyID(spki)
	if err != nil {
		return err
	}
	id, err := spiffeid.FromPath(a.td, "/lint/"+string(profile))
	if err != nil {
		return err
	}
	throwAwayForm, err := newForm(throwAway, caKey)
	if err != nil {
		return err
	}
	l := leaf{
		profile: profile, serial: newSerial(), uri: id.String(), ski: ski, spki: spki,
		notBefore: now.Add(-minBackdate).Truncate(time.Second), notAfter: now.Add(time.Minute).Truncate(time.Second),
		dns: []string{"lint.example"}, ips: []netip.Addr{netip.MustParseAddr("192.0.2.1")},
	}
	der, err := throwAwayForm.sign(&l)
	if err != nil {
		return err
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return err
	}
	if err := cert.CheckSignatureFrom(throwAway); err != nil {
		return err
	}
	if err := checkSigned(cert, &l, leafKey.Public()); err != nil {
		return err
	}
	return lint(cert, throwAway, id)
}

var (
	oidKeyUsage         = asn1.ObjectIdentifier{2, 5, 29, 15}
	oidBasicConstraints = asn1.ObjectIdentifier{2, 5, 29, 19}
	oidExtKeyUsage      = asn1.ObjectIdentifier{2, 5, 29, 37}
	oidAuthorityKeyID   = asn1.ObjectIdentifier{2, 5, 29, 35}
	oidSubjectKeyID     = asn1.ObjectIdentifier{2, 5, 29, 14}
)

// critical says of each extension we use whether it is critical.
var critical = map[string]bool{
	oidKeyUsage.String():         true,  // RFC 5280 4.2.1.3, SPIFFE X509-SVID 4.3
	oidBasicConstraints.String(): true,  // RFC 5280 4.2.1.9
	oidExtKeyUsage.String():      false, // RFC 5280 4.2.1.12
	oidAuthorityKeyID.String():   false, // RFC 5280 4.2.1.1
	oidSubjectKeyID.String():     false, // RFC 5280 4.2.1.2
	oidSubjectAltName.String():   false, // RFC 5280 4.2.1.6: critical only without a subject
}

// lint holds RFC 5280 and SPIFFE X509-SVID against a leaf and names every
// rule that it breaks.
func lint(c, issuer *x509.Certificate, id spiffeid.ID) error {
	var errs []error
	rule := func(ok bool, text string) {
		if !ok {
			errs = append(errs, errors.New(text))
		}
	}
	rule(c.Version == 3, "RFC 5280 4.1.2.1: version is not 3")
	rule(c.SerialNumber.Sign() > 0 && c.SerialNumber.BitLen() <= 159, "RFC 5280 4.1.2.2: serial is not positive, or longer than 20 octets")
	rule(c.SerialNumber.BitLen() >= 64, "serial has fewer than 64 bits")
	rule(bytes.Equal(c.RawIssuer, issuer.RawSubject), "RFC 5280 4.1.2.4: issuer is not the CA's subject")
	rule(len(issuer.Subject.Names) > 0, "RFC 5280 4.1.2.4: issuer is empty")
	rule(!c.NotBefore.After(c.NotAfter), "RFC 5280 4.1.2.5: validity ends before it begins")
	rule(!c.NotBefore.Before(issuer.NotBefore) && !c.NotAfter.After(issuer.NotAfter), "validity reaches beyond the issuer's")
	rule(!c.IsCA, "SPIFFE X509-SVID 4.1: a leaf is a CA")
	rule(len(c.URIs) == 1 && c.URIs[0].String() == id.String(), "SPIFFE X509-SVID 2: not exactly one URI name, the SPIFFE ID")
	rule(id.Path() != "", "SPIFFE X509-SVID 4.1: a leaf's SPIFFE ID has no path")
	rule(c.KeyUsage&x509.KeyUsageDigitalSignature != 0, "SPIFFE X509-SVID 4.3: key usage lacks digitalSignature")
	rule(c.KeyUsage&(x509.KeyUsageCertSign|x509.KeyUsageCRLSign) == 0, "SPIFFE X509-SVID 4.3: a leaf may sign certificates or CRLs")
	rule(len(c.ExtKeyUsage) > 0 && len(c.UnknownExtKeyUsage) == 0, "SPIFFE X509-SVID 4.4: extended key usage is missing or unknown")
	rule(slices.Contains(c.ExtKeyUsage, x509.ExtKeyUsageClientAuth), "SPIFFE X509-SVID 4.4: extended key usage lacks clientAuth")
	rule(len(issuer.SubjectKeyId) > 0 && bytes.Equal(c.AuthorityKeyId, issuer.SubjectKeyId), "RFC 5280 4.2.1.1: authority key id is not the issuer's")
	rule(len(c.SubjectKeyId) > 0, "RFC 5280 4.2.1.2: no subject key id")
	rule(len(c.EmailAddresses) == 0, "an e-mail name")
	rule(!c.PermittedDNSDomainsCritical && len(c.PolicyIdentifiers) == 0, "extensions that a leaf does not have")
	seen := make(map[string]bool)
	for _, ext := range c.Extensions {
		oid := ext.Id.String()
		want, known := critical[oid]
		rule(known, "unexpected extension "+oid)
		rule(!known || ext.Critical == want, "extension "+oid+" has the wrong criticality")
		rule(!seen[oid], "RFC 5280 4.2: extension "+oid+" twice")
		seen[oid] = true
	}
	for oid := range critical {
		rule(seen[oid], "extension "+oid+" is missing")
	}
	for _, name := range c.DNSNames {
		rule(checkDNS(name) == nil, "RFC 5280 4.2.1.6: DNS name "+strings.ToValidUTF8(name, "?"))
	}
	return errors.Join(errs...)
}

// checkSigned compares what was signed with what was asked, after reading it
// back: the signature itself was verified when it was made.
func checkSigned(c *x509.Certificate, l *leaf, public any) error {
	key, ok := public.(interface{ Equal(x crypto.PublicKey) bool })
	switch {
	case c.SerialNumber.Cmp(l.serial) != 0:
		return errors.New("the signed certificate has another serial")
	case len(c.URIs) != 1 || c.URIs[0].String() != l.uri:
		return errors.New("the signed certificate names another identity")
	case !slices.Equal(c.DNSNames, l.dns):
		return errors.New("the signed certificate has other DNS names")
	case !slices.EqualFunc(c.IPAddresses, l.ips, func(a net.IP, b netip.Addr) bool { return bytes.Equal(a, b.AsSlice()) }):
		return errors.New("the signed certificate has other addresses")
	case !c.NotBefore.Equal(l.notBefore) || !c.NotAfter.Equal(l.notAfter):
		return errors.New("the signed certificate has another validity")
	case !ok || !key.Equal(c.PublicKey) || !bytes.Equal(c.RawSubjectPublicKeyInfo, l.spki):
		return errors.New("the signed certificate has another key")
	case c.IsCA || c.KeyUsage != leafKeyUsage || !slices.Equal(c.ExtKeyUsage, extKeyUsage[l.profile]):
		return errors.New("the signed certificate may be used for something else")
	}
	return nil
}
