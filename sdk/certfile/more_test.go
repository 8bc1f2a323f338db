package certfile

import (
	"bytes"
	"crypto/ecdh"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"math/big"
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
			if took := time.Since(start); took > 5*time.Second {
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
