package certfile

import (
	"bytes"
	"crypto/ecdh"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"math/big"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/legation-io/legation/sdk/internal/pkitest"
)

func x25519(t *testing.T) []byte {
	t.Helper()
	key, err := ecdh.X25519().GenerateKey(rand.Reader)
	try(t, err)
	der, err := x509.MarshalPKCS8PrivateKey(key)
	try(t, err)
	return der
}

func revocationList(t *testing.T, a *pkitest.Authority) []byte {
	t.Helper()
	der, err := x509.CreateRevocationList(rand.Reader, &x509.RevocationList{Number: big.NewInt(1), ThisUpdate: time.Now(), NextUpdate: time.Now().Add(time.Hour)}, a.Cert, a.Key)
	try(t, err)
	return der
}

func TestKindsOfKeysAsOpenSSLWritesThem(t *testing.T) {
	domain := pkitest.New(t, "example.org", nil)
	dir := t.TempDir()
	for name, args := range map[string][]string{
		"P-256 PKCS #8":  {"genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256"},
		"P-384 SEC 1":    {"ecparam", "-name", "secp384r1", "-genkey"}, // with EC PARAMETERS before it
		"RSA PKCS #8":    {"genpkey", "-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048"},
		"RSA PKCS #1":    {"genrsa", "-traditional", "2048"},
		"Ed25519":        {"genpkey", "-algorithm", "ED25519"},
		"RSA, CRLF ends": {"genrsa", "2048"},
	} {
		t.Run(name, func(t *testing.T) {
			raw, err := exec.Command("openssl", args...).Output()
			try(t, err)
			if strings.Contains(name, "CRLF") {
				raw = []byte(strings.ReplaceAll(string(raw), "\n", "\r\n"))
			}
			key, err := privateKey(raw)
			try(t, err)
			c := domain.Issue("/web", nil) // its names, another's key
			der, err := x509.CreateCertificate(rand.Reader, c.Leaf, domain.Issuing().Cert, key.Public(), domain.Issuing().Key)
			try(t, err)
			write(t, filepath.Join(dir, "tls.key"), raw)
			write(t, filepath.Join(dir, "tls.crt"), append([]byte("Bag Attributes\n    friendlyName: web\n"), certPEM(&tls.Certificate{Certificate: [][]byte{der}})...))
			if _, err := New(Config{Certificate: filepath.Join(dir, "tls.crt"), Key: filepath.Join(dir, "tls.key"), Logger: new(lines).logger()}); err != nil {
				t.Error(err)
			}
		})
	}
	if _, err := privateKey(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: x25519(t)})); err == nil || !strings.Contains(err.Error(), "no signatures") {
		t.Errorf("%v", err)
	}
}

func TestKeyBytesAreWiped(t *testing.T) {
	f := &folder{t: t, domain: pkitest.New(t, "example.org", nil), dir: t.TempDir()}
	c := f.issue()
	f.put(c)
	s, err := New(Config{Certificate: f.path("tls.crt"), Key: f.path("tls.key"), Logger: f.log.logger()})
	try(t, err)
	set, err := s.load()
	try(t, err)
	file := set.bytes(f.path("tls.key")) // small enough to stay mapped after it is closed
	all, err := blocks(file)
	try(t, err)
	buffer, der, err := all[0].secret()
	try(t, err)
	if key, err := x509.ParsePKCS8PrivateKey(der); err != nil || key == nil {
		t.Fatal(err)
	}
	buffer.Close()
	set.wipe()
	for what, b := range map[string][]byte{"the file": file, "the decoded key": der} {
		if len(b) > 256 || len(b) < 100 {
			t.Fatalf("%s has %d bytes", what, len(b))
		}
		if !bytes.Equal(b, make([]byte, len(b))) {
			t.Errorf("%s is still in memory", what)
		}
	}
}

// Parsers that look for the next boundary from every place take hours for a
// megabyte of beginnings.
func TestA57PEMCostsNoMoreThanItsSize(t *testing.T) {
	const size = 1 << 20
	fill := func(s string) []byte { return bytes.Repeat([]byte(s), size/len(s)+1)[:size] }
	for name, data := range map[string][]byte{
		"beginnings":              fill("-----BEGIN CERTIFICATE-----\n"),
		"beginnings without ends": fill("-----BEGIN "),
		"dashes":                  fill("-"),
		"ends":                    fill("-----END CERTIFICATE-----\n"),
		"empty lines":             fill("\n"),
		"empty blocks":            fill("-----BEGIN CERTIFICATE-----\n-----END CERTIFICATE-----\n"),
		"one long line":           fill("A"),
		"colons":                  append([]byte("-----BEGIN PRIVATE KEY-----\n"), fill(":\n")...),
		"one long block":          append(append([]byte("-----BEGIN PRIVATE KEY-----\n"), fill("AAAA\n")...), "\n-----END PRIVATE KEY-----\n"...),
		"a block in a block":      append([]byte("-----BEGIN X-----\n"), fill("A-----BEGIN X-----\n")...),
	} {
		t.Run(name, func(t *testing.T) {
			start := time.Now()
			all, err := blocks(data)
			if err == nil && len(all) > maxBlocks {
				t.Errorf("%d blocks", len(all))
			}
			_, _ = certificates(data)
			_, _ = privateKey(data)
			// Some milliseconds; minutes where it is quadratic.
			if took := time.Since(start); took > 30*time.Second {
				t.Errorf("it took %s", took)
			}
		})
	}
}

func FuzzPEM(f *testing.F) {
	domain := pkitest.New(f, "example.org", nil)
	c := domain.Issue("/web", nil)
	f.Add(append(certPEM(c), keyPEM(f, c)...))
	f.Add([]byte("-----BEGIN A-----\nProc-Type: 4,ENCRYPTED\n\nAAAA\n-----END A-----"))
	f.Add([]byte("text\n-----BEGIN A-----\r\nAAAA\r\n-----END A-----\r\n"))
	f.Add([]byte("-----END A-----"))
	f.Fuzz(func(t *testing.T, data []byte) {
		_, _ = certificates(data)
		_, _ = revocationLists(data)
		if key, err := privateKey(data); (key == nil) == (err == nil) {
			t.Fatalf("%v %v", key, err)
		}
		all, err := blocks(data)
		if err != nil {
			if len(err.Error()) > 1000 || strings.ContainsAny(err.Error(), "\n\x00\x1b") {
				t.Fatalf("%q", err)
			}
			return
		}
		// What is accepted and decodes means the same to encoding/pem.
		var mine [][]byte
		for _, b := range all {
			der, err := b.der()
			if err != nil {
				return
			}
			buffer, secret, err := b.secret()
			if err == nil {
				if !bytes.Equal(secret, der) {
					t.Fatal("secret bytes are decoded to something else")
				}
				buffer.Close()
			}
			mine = append(mine, append([]byte(b.kind+"\x00"), der...))
		}
		rest := data
		for n := range mine {
			var p *pem.Block
			if p, rest = pem.Decode(rest); p == nil {
				return // pickier than we are about what is around, e.g. kinds
			}
			if got := append([]byte(p.Type+"\x00"), p.Bytes...); !bytes.Equal(got, mine[n]) {
				t.Fatalf("block %d: %q, encoding/pem %q", n, mine[n], got)
			}
		}
	})
}
