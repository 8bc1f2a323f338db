package certfile

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/legation-io/legation/sdk/chaincheck"
	"github.com/legation-io/legation/sdk/identity"
)

// maxChain is the most certificates of a chain that is presented.
const maxChain = 16

// parse makes a snapshot of all files, or says what is wrong with which.
func (s *set) parse(now time.Time) (*identity.Snapshot, error) {
	snapshot := &identity.Snapshot{}
	if s.config.Certificate != "" {
		pair, err := s.pair(now)
		if err != nil {
			return nil, err
		}
		snapshot.Certificate = pair
		if snapshot.ID, err = spiffeID(pair.Leaf); err != nil {
			return nil, fmt.Errorf("%s: %w", s.config.Certificate, err)
		}
	}
	trust, err := s.trust(snapshot.ID)
	if err != nil {
		return nil, err
	}
	snapshot.Trust = trust
	return snapshot, nil
}

// spiffeID returns zero for a certificate that has no URI name, e.g. one of the
// public Web.
func spiffeID(leaf *x509.Certificate) (spiffeid.ID, error) {
	if len(leaf.URIs) == 0 {
		return spiffeid.ID{}, nil
	}
	if len(leaf.URIs) > 1 {
		return spiffeid.ID{}, fmt.Errorf("the certificate has %d URI names, a SPIFFE identity has one (X509-SVID 2)", len(leaf.URIs))
	}
	id, err := spiffeid.FromURI(leaf.URIs[0])
	if err != nil {
		return spiffeid.ID{}, fmt.Errorf("the certificate's URI name is no SPIFFE ID: %w", err)
	}
	return id, nil
}

// pair is the certificate with its key.
func (s *set) pair(now time.Time) (*tls.Certificate, error) {
	path := s.config.Certificate
	chain, err := certificates(s.bytes(path))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	if len(chain) == 0 {
		return nil, fmt.Errorf("%s has no CERTIFICATE block", path)
	}
	if last := chain[len(chain)-1]; len(chain) > 1 && bytes.Equal(last.RawSubject, last.RawIssuer) {
		chain = chain[:len(chain)-1] // who believes it has it
	}
	if len(chain) > maxChain {
		return nil, fmt.Errorf("%s has a chain of %d certificates, at most %d are presented; is it a bundle?", path, len(chain), maxChain)
	}
	for n, c := range chain {
		if now.Truncate(time.Second).After(c.NotAfter) {
			return nil, fmt.Errorf("%s: certificate %d of the chain expired %s", path, n+1, c.NotAfter.UTC().Format(time.RFC3339))
		}
		if now.Before(c.NotBefore) {
			return nil, fmt.Errorf("%s: certificate %d of the chain is valid only from %s", path, n+1, c.NotBefore.UTC().Format(time.RFC3339))
		}
	}
	key, err := privateKey(s.bytes(s.config.Key))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", s.config.Key, err)
	}
	leaf := chain[0]
	if public, ok := key.Public().(interface{ Equal(crypto.PublicKey) bool }); !ok || !public.Equal(leaf.PublicKey) {
		for _, c := range chain[1:] {
			if ok && public.Equal(c.PublicKey) {
				return nil, fmt.Errorf("%s: the leaf must come first, the key belongs to a later certificate", path)
			}
		}
		return nil, fmt.Errorf("the key in %s does not belong to the certificate in %s (serial %s): is only one of them new?", s.config.Key, path, leaf.SerialNumber.Text(16))
	}
	pair := &tls.Certificate{PrivateKey: key, Leaf: leaf}
	for _, c := range chain {
		pair.Certificate = append(pair.Certificate, c.Raw)
	}
	return pair, nil
}

// certificates parses the CERTIFICATE blocks and passes over others.
func certificates(data []byte) ([]*x509.Certificate, error) {
	all, err := blocks(data)
	if err != nil {
		return nil, err
	}
	var certs []*x509.Certificate
	for _, b := range all {
		if b.kind != "CERTIFICATE" {
			continue
		}
		der, err := b.der()
		if err != nil {
			return nil, err
		}
		c, err := x509.ParseCertificate(der)
		if err != nil {
			return nil, fmt.Errorf("the certificate of line %d does not parse: %w", b.line, err)
		}
		certs = append(certs, c)
	}
	return certs, nil
}

var errEncrypted = errors.New("the private key is encrypted, and a password beside it would protect nothing: write it unencrypted (openssl pkey -in … -out …), with mode 0600, on a file system in memory")

// privateKey finds the one key of a file.
func privateKey(data []byte) (crypto.Signer, error) {
	all, err := blocks(data)
	if err != nil {
		return nil, err
	}
	var found *block
	for n := range all {
		switch b := &all[n]; b.kind {
		case "ENCRYPTED PRIVATE KEY":
			return nil, errEncrypted
		case "PRIVATE KEY", "EC PRIVATE KEY", "RSA PRIVATE KEY":
			if b.headers {
				return nil, errEncrypted
			}
			if found != nil {
				return nil, fmt.Errorf("there are two private keys, in line %d and line %d", found.line, b.line)
			}
			found = b
		}
	}
	if found == nil {
		return nil, errors.New("there is no PRIVATE KEY block")
	}
	buffer, der, err := found.secret()
	if err != nil {
		return nil, err
	}
	defer buffer.Close()
	var parsed any
	switch found.kind {
	case "EC PRIVATE KEY":
		parsed, err = x509.ParseECPrivateKey(der)
	case "RSA PRIVATE KEY":
		parsed, err = x509.ParsePKCS1PrivateKey(der)
	default:
		parsed, err = x509.ParsePKCS8PrivateKey(der)
	}
	if err != nil {
		return nil, fmt.Errorf("the %s of line %d does not parse: %w", found.kind, found.line, err)
	}
	switch key := parsed.(type) {
	case *ecdsa.PrivateKey:
		return key, nil
	case ed25519.PrivateKey:
		return key, nil
	case *rsa.PrivateKey:
		if bits := key.N.BitLen(); bits < 2048 {
			return nil, fmt.Errorf("the RSA key has %d bits, at least 2048 are needed", bits)
		}
		return key, nil
	default:
		return nil, fmt.Errorf("TLS has no signatures with a key of type %T", parsed)
	}
}

// trust is the bundles and lists.
func (s *set) trust(own spiffeid.ID) (*chaincheck.Trust, error) {
	trust := &chaincheck.Trust{Roots: chaincheck.Roots{}}
	domain := s.config.TrustDomain
	if domain.IsZero() {
		domain = own.TrustDomain()
	}
	add := func(domain spiffeid.TrustDomain, path string) error {
		roots, err := s.roots(path)
		if err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
		trust.Roots[domain] = append(trust.Roots[domain], roots...)
		return nil
	}
	if s.config.Bundle != "" {
		if domain.IsZero() {
			return nil, fmt.Errorf("%s: the certificate in %s has no SPIFFE ID, so Config.TrustDomain must say whose roots these are", s.config.Bundle, s.config.Certificate)
		}
		if err := add(domain, s.config.Bundle); err != nil {
			return nil, err
		}
	}
	for foreign, path := range s.config.Federated {
		if foreign == domain {
			return nil, fmt.Errorf("%s: %s is the own trust domain; its roots belong into Config.Bundle", path, foreign)
		}
		if err := add(foreign, path); err != nil {
			return nil, err
		}
	}
	if len(s.config.CRLs) == 0 {
		return trust, nil
	}
	var lists [][]byte
	for _, path := range s.config.CRLs {
		ders, err := revocationLists(s.bytes(path))
		if err != nil {
			return nil, fmt.Errorf("%s: %w", path, err)
		}
		lists = append(lists, ders...)
	}
	crls, err := chaincheck.NewCRLSet(lists)
	if err != nil {
		return nil, fmt.Errorf("the revocation lists in %v: %w", s.config.CRLs, err)
	}
	trust.CRLs = crls
	return trust, nil
}

func (s *set) roots(path string) ([]*x509.Certificate, error) {
	data := s.bytes(path)
	all, err := blocks(data)
	if err != nil {
		return nil, err
	}
	for _, b := range all {
		if bytes.HasSuffix([]byte(b.kind), []byte("PRIVATE KEY")) {
			return nil, fmt.Errorf("there is a private key in line %d: a bundle is for everybody, and holds none", b.line)
		}
	}
	roots, err := certificates(data)
	if err != nil {
		return nil, err
	}
	if len(roots) == 0 {
		return nil, errors.New("there is no CERTIFICATE block")
	}
	for n, c := range roots {
		if !c.IsCA {
			return nil, fmt.Errorf("certificate %d (%q) is not a CA's, so it cannot be a root", n+1, c.Subject)
		}
	}
	return roots, nil
}

// revocationLists reads PEM, or the DER that lists are published as.
func revocationLists(data []byte) ([][]byte, error) {
	if len(data) > 0 && data[0] == 0x30 { // SEQUENCE
		return [][]byte{bytes.Clone(data)}, nil
	}
	all, err := blocks(data)
	if err != nil {
		return nil, err
	}
	var lists [][]byte
	for _, b := range all {
		if b.kind != "X509 CRL" {
			continue
		}
		der, err := b.der()
		if err != nil {
			return nil, err
		}
		lists = append(lists, der)
	}
	if len(lists) == 0 {
		return nil, errors.New("there is no X509 CRL block")
	}
	return lists, nil
}
