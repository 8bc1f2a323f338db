package ca

import (
	"context"
	"crypto"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"fmt"
	"math/big"
	"net/url"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/legation-io/legation/internal/ca/custody"
	"github.com/legation-io/legation/internal/fault"
	"github.com/legation-io/legation/internal/store"
)

// caBackdate is how far back a CA's validity reaches: further than any leaf's.
const caBackdate = time.Hour

// create makes root, issuing CA and JWT key. fault.Conflict when another
// replica was first.
func (a *Authority) create(ctx context.Context, keys custody.Provider) error {
	now, err := a.guard.Check()
	if err != nil {
		return err
	}
	now = now.UTC().Truncate(time.Second)
	var tag [4]byte
	rand.Read(tag[:])
	id := hex.EncodeToString(tag[:])
	o := authorityObject{
		Name: DefaultName, TrustDomain: a.td.Name(), CreatedAt: now, Sequence: 1,
		RootKey: DefaultName + "/root-" + id, IssuingKey: DefaultName + "/issuing-" + id, JWTKey: DefaultName + "/jwt-" + id,
	}
	signers := make(map[string]crypto.Signer, 3)
	for _, name := range []string{o.RootKey, o.IssuingKey, o.JWTKey} {
		if signers[name], err = keys.Create(ctx, name, custody.ECDSAP256); err != nil {
			return err
		}
		a.failpoint("create:key")
	}
	rootKey, issuingKey, jwtKey := signers[o.RootKey], signers[o.IssuingKey], signers[o.JWTKey]

	root, err := a.newCA(caParams{
		name: "Legation root " + id, public: rootKey.Public(), signer: rootKey,
		notBefore: now.Add(-caBackdate), notAfter: now.Add(a.life.Root), pathLen: -1,
	})
	if err != nil {
		return fmt.Errorf("make the root: %w", err)
	}
	issuing, err := a.newCA(caParams{
		name: "Legation issuing CA " + id, public: issuingKey.Public(), signer: rootKey, parent: root,
		notBefore: now.Add(-caBackdate), notAfter: earlier(now.Add(a.life.Issuing), root.NotAfter), pathLen: 0,
	})
	if err != nil {
		return fmt.Errorf("make the issuing CA: %w", err)
	}
	o.RootCert, o.IssuingCert = root.Raw, issuing.Raw
	if o.JWTPublic, err = x509.MarshalPKIXPublicKey(jwtKey.Public()); err != nil {
		return err
	}
	jwk := jose.JSONWebKey{Key: jwtKey.Public()}
	thumbprint, err := jwk.Thumbprint(crypto.SHA256) // RFC 7638
	if err != nil {
		return err
	}
	o.JWTKeyID = hex.EncodeToString(thumbprint[:16])

	crl := crlObject{Number: 1}
	if crl.Root, err = signCRL(root, rootKey, 1, now, nil); err != nil {
		return fmt.Errorf("sign the root's CRL: %w", err)
	}
	if crl.Issuing, err = signCRL(issuing, issuingKey, 1, now, nil); err != nil {
		return fmt.Errorf("sign the issuing CA's CRL: %w", err)
	}
	value, err := encodeObject(kindAuthority, o)
	if err != nil {
		return err
	}
	a.failpoint("create:signed")
	_, err = a.store.Commit(ctx, store.Txn{
		If: []store.Cond{{Key: a.objectKey()}, {Key: a.crlKey()}},
		Then: []store.Op{
			{Key: a.objectKey(), Value: value},
			{Key: a.crlKey(), Value: crl.encode()},
		},
	})
	if err != nil {
		return fmt.Errorf("store the new authority: %w", err)
	}
	a.failpoint("create:stored")
	a.log.Info("made the authority", "authority", DefaultName, "trust_domain", a.td.Name(), "root_until", root.NotAfter, "issuing_until", issuing.NotAfter)
	return nil
}

type caParams struct {
	name                string
	public              crypto.PublicKey
	signer              crypto.Signer
	parent              *x509.Certificate // nil: self-signed
	notBefore, notAfter time.Time
	pathLen             int // -1: not bounded, as in a root
}

// newCA signs a CA certificate in the form of SPIFFE X509-SVID 5: keyCertSign,
// cRLSign (Envoy wants a CRL from every CA), URI SAN the trust domain's ID.
// It carries no name constraints: rustls refuses every chain that has one on
// URIs (GHSA-965h-392x-2mh5), so ztunnel would; what these CAs sign is
// checked here instead, and other domains' names need other roots.
func (a *Authority) newCA(p caParams) (*x509.Certificate, error) {
	spki, err := x509.MarshalPKIXPublicKey(p.public)
	if err != nil {
		return nil, err
	}
	ski, err := keyID(spki)
	if err != nil {
		return nil, err
	}
	template := &x509.Certificate{
		SerialNumber:          newSerial(),
		Subject:               pkix.Name{Organization: []string{"Legation"}, CommonName: p.name},
		NotBefore:             p.notBefore,
		NotAfter:              p.notAfter,
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
		BasicConstraintsValid: true,
		IsCA:                  true,
		MaxPathLen:            p.pathLen,
		MaxPathLenZero:        p.pathLen == 0,
		SubjectKeyId:          ski,
		URIs:                  []*url.URL{a.td.ID().URL()},
	}
	parent := p.parent
	if parent == nil {
		parent = template
		template.AuthorityKeyId = ski
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, p.public, p.signer)
	if err != nil {
		return nil, err
	}
	return x509.ParseCertificate(der)
}

// newSerial returns 126 random bits in 16 bytes whose first is never zero, so
// that every serial is 32 hex digits (RFC 5280 4.1.2.2: at most 20 octets).
func newSerial() *big.Int {
	var b [16]byte
	rand.Read(b[:])
	b[0] = b[0]&0x3f | 0x40
	return new(big.Int).SetBytes(b[:])
}

func serialHex(n *big.Int) string { return n.Text(16) }

func spkiHash(spki []byte) [32]byte { return sha256.Sum256(spki) }

func earlier(a, b time.Time) time.Time {
	if b.Before(a) {
		return b
	}
	return a
}

// lostRace reports whether another replica was first.
func lostRace(err error) bool { return fault.Is(err, fault.Conflict) }
