package identity

import (
	"crypto"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"

	"github.com/legation-io/legation/sdk/chaincheck"
)

// PEM is an identity as files hold it, in PEM (RFC 7468).
type PEM struct {
	// Certificate is the X.509-SVID, leaf first, then its intermediates.
	// Empty, with Key, for one that only verifies others.
	Certificate []byte
	// Key is its private key. It is wiped by Snapshot.
	Key []byte
	// Bundle is the roots of the certificate's trust domain.
	Bundle []byte
	// TrustDomain is whose roots Bundle are when there is no Certificate.
	TrustDomain spiffeid.TrustDomain
	// Federated are the roots of other trust domains; may be nil.
	Federated map[spiffeid.TrustDomain][]byte
	// CRLs are X509 CRL blocks of any of these; may be empty.
	CRLs []byte
}

// maxPEM bounds each part of a PEM, in bytes.
const maxPEM = 4 << 20

// Snapshot reads it. It checks that key and certificate belong together and
// that the certificate has a SPIFFE ID; whether anybody should believe it is
// for peers to judge.
func (p PEM) Snapshot() (*Snapshot, error) {
	defer clear(p.Key)
	s := &Snapshot{}
	domain := p.TrustDomain
	if len(p.Certificate) > 0 || len(p.Key) > 0 {
		var err error
		if s.Certificate, err = p.certificate(); err != nil {
			return nil, err
		}
		if s.ID, err = x509svid.IDFromCert(s.Certificate.Leaf); err != nil {
			return nil, fmt.Errorf("the certificate is no X.509-SVID: %w", err)
		}
		if !domain.IsZero() && domain != s.ID.TrustDomain() {
			return nil, fmt.Errorf("the certificate is of %s, and the bundle is said to be that of %s", s.ID, domain)
		}
		domain = s.ID.TrustDomain()
	}
	if domain.IsZero() {
		return nil, errors.New("there is neither a certificate nor a TrustDomain: whose roots the bundle has is not known")
	}
	roots := chaincheck.Roots{}
	bundles := map[spiffeid.TrustDomain][]byte{domain: p.Bundle}
	for other, raw := range p.Federated {
		if other == domain {
			return nil, fmt.Errorf("in Federated is %s, whose roots are Bundle's", other)
		}
		bundles[other] = raw
	}
	for of, raw := range bundles {
		certs, err := certificates(raw)
		if err != nil {
			return nil, fmt.Errorf("the bundle of %s: %w", of, err)
		}
		roots[of] = certs
	}
	crls, err := blocks(p.CRLs, "X509 CRL", true)
	if err != nil {
		return nil, fmt.Errorf("the CRLs: %w", err)
	}
	s.Trust, err = trust(roots, crls)
	return s, err
}

func trust(roots chaincheck.Roots, crls [][]byte) (*chaincheck.Trust, error) {
	t := &chaincheck.Trust{Roots: roots}
	if len(crls) == 0 {
		return t, nil
	}
	var err error
	t.CRLs, err = chaincheck.NewCRLSet(crls)
	return t, err
}

func (p PEM) certificate() (*tls.Certificate, error) {
	chain, err := certificates(p.Certificate)
	if err != nil {
		return nil, fmt.Errorf("the certificate: %w", err)
	}
	if len(p.Key) > maxPEM {
		return nil, fmt.Errorf("the private key has %d bytes, at most %d are read", len(p.Key), maxPEM)
	}
	block, rest := pem.Decode(p.Key)
	if block != nil && block.Type == "EC PARAMETERS" { // openssl writes it before the key
		block, _ = pem.Decode(rest)
	}
	if block == nil {
		return nil, errors.New("the private key: no PEM block is there")
	}
	key, err := LoadKey(block.Bytes)
	if err != nil {
		return nil, err
	}
	return pair(chain, key)
}

// pair joins a chain and the key of its leaf.
func pair(chain []*x509.Certificate, key crypto.Signer) (*tls.Certificate, error) {
	public, ok := key.Public().(interface{ Equal(crypto.PublicKey) bool })
	if !ok || !public.Equal(chain[0].PublicKey) {
		return nil, errors.New("the private key is not that of the certificate")
	}
	c := &tls.Certificate{PrivateKey: key, Leaf: chain[0]}
	for _, cert := range chain {
		c.Certificate = append(c.Certificate, cert.Raw)
	}
	return c, nil
}

func certificates(raw []byte) ([]*x509.Certificate, error) {
	ders, err := blocks(raw, "CERTIFICATE", false)
	if err != nil {
		return nil, err
	}
	certs := make([]*x509.Certificate, len(ders))
	for n, der := range ders {
		if certs[n], err = x509.ParseCertificate(der); err != nil {
			return nil, fmt.Errorf("certificate %d of %d does not parse: %w", n+1, len(ders), err)
		}
	}
	return certs, nil
}

// blocks returns the contents of all PEM blocks of one type; another type is
// an error.
func blocks(raw []byte, want string, none bool) ([][]byte, error) {
	if len(raw) > maxPEM {
		return nil, fmt.Errorf("%d bytes, at most %d are read", len(raw), maxPEM)
	}
	var out [][]byte
	for {
		var block *pem.Block
		if block, raw = pem.Decode(raw); block == nil {
			break
		}
		if block.Type != want {
			return nil, fmt.Errorf("a PEM block %.40q among what should be %s", block.Type, want)
		}
		out = append(out, block.Bytes)
	}
	if len(out) == 0 && !none {
		return nil, fmt.Errorf("no PEM block %s is there", want)
	}
	return out, nil
}

// FromX509SVID makes a snapshot of go-spiffe's types: an SVID, nil for one that
// only verifies others, the roots of every trust domain that is believed, its
// own among them, and CRLs in DER, which may be nil (chaincheck.Prefer). The
// SVID's key is used as it is; LoadKey protects it better.
func FromX509SVID(svid *x509svid.SVID, bundles *x509bundle.Set, crls [][]byte) (*Snapshot, error) {
	s := &Snapshot{}
	if bundles == nil || bundles.Len() == 0 {
		return nil, errors.New("no bundle: nobody would be believed")
	}
	roots := chaincheck.Roots{}
	for _, b := range bundles.Bundles() {
		roots[b.TrustDomain()] = b.X509Authorities()
	}
	if svid != nil {
		if len(svid.Certificates) == 0 || svid.PrivateKey == nil {
			return nil, fmt.Errorf("the SVID of %s lacks its certificate or its key", svid.ID)
		}
		var err error
		if s.Certificate, err = pair(svid.Certificates, svid.PrivateKey); err != nil {
			return nil, fmt.Errorf("the SVID of %s: %w", svid.ID, err)
		}
		if s.ID, err = x509svid.IDFromCert(svid.Certificates[0]); err != nil {
			return nil, err
		}
	}
	var err error
	s.Trust, err = trust(roots, crls)
	return s, err
}
