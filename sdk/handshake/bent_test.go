package handshake

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"errors"
	"io"
	"net"
	"strconv"
	"strings"
	"testing"
)

// fakeRSA has a public key without a private one; nobody gets to check its
// signatures.
type fakeRSA struct{ public *rsa.PublicKey }

func (k *fakeRSA) Public() crypto.PublicKey { return k.public }

func (k *fakeRSA) Sign(io.Reader, []byte, crypto.SignerOpts) ([]byte, error) {
	return make([]byte, k.public.Size()), nil
}

// opaque is a private key that nothing can be done with.
type opaque struct{}

func smallRSA(t testing.TB) *rsa.PrivateKey {
	t.Helper()
	t.Setenv("GODEBUG", "rsa1024min=0")
	key, err := rsa.GenerateKey(rand.Reader, 512)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// asEd448 makes an Ed25519 certificate claim a kind of key that Go does not
// know.
func asEd448(der []byte) []byte {
	return bytes.ReplaceAll(der, []byte{0x06, 0x03, 0x2b, 0x65, 0x70}, []byte{0x06, 0x03, 0x2b, 0x65, 0x71})
}

func extension(oid string) pkix.Extension {
	var id asn1.ObjectIdentifier
	for arc := range strings.SplitSeq(oid, ".") {
		n, err := strconv.Atoi(arc)
		if err != nil {
			panic(errors.New("no OID: " + oid))
		}
		id = append(id, n)
	}
	return pkix.Extension{Id: id, Critical: true, Value: []byte{5, 0}}
}

// deaf hangs up when the answer is to be read.
type deaf struct{ net.Conn }

func (d deaf) Read([]byte) (int, error) { d.Close(); return 0, io.EOF }

func withCriticalExtension(c *x509.Certificate) {
	c.ExtraExtensions = append(c.ExtraExtensions, extension("1.2.3.4.5"))
}

func repeat(der []byte, n int) [][]byte {
	chain := make([][]byte, n)
	for i := range chain {
		chain[i] = der
	}
	return chain
}

func mustKey(t testing.TB) crypto.Signer {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}
