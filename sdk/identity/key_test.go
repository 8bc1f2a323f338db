package identity_test

import (
	"bytes"
	"crypto"
	"crypto/ecdh"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"

	"github.com/legation-io/legation/sdk/identity"
)

// keys are one of each kind, in each encoding it has.
func keys(t testing.TB) map[string][]byte {
	t.Helper()
	ec, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	r, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	_, ed, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	out := map[string][]byte{}
	for name, key := range map[string]crypto.Signer{"ECDSA P-256": ec, "RSA 2048": r, "Ed25519": ed} {
		if out[name], err = x509.MarshalPKCS8PrivateKey(key); err != nil {
			t.Fatal(err)
		}
	}
	if out["ECDSA P-256 in SEC 1"], err = x509.MarshalECPrivateKey(ec); err != nil {
		t.Fatal(err)
	}
	out["RSA 2048 in PKCS #1"] = x509.MarshalPKCS1PrivateKey(r)
	return out
}

func TestAKeySignsAndIsNotGivenOut(t *testing.T) {
	digest := sha256.Sum256([]byte("what is signed"))
	for name, der := range keys(t) {
		t.Run(name, func(t *testing.T) {
			secret := bytes.Clone(der)
			k, err := identity.LoadKey(der)
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(der, make([]byte, len(der))) {
				t.Error("what was given is not wiped")
			}
			kind, _, _ := strings.Cut(name, " in ")
			var log bytes.Buffer
			slog.New(slog.NewTextHandler(&log, nil)).Info("x", "key", k)
			for _, shown := range []string{fmt.Sprint(k), fmt.Sprintf("%v", k), fmt.Sprintf("%+v", k), fmt.Sprintf("%#v", k), fmt.Sprintf("%x", k), fmt.Sprintf("%s", struct{ K any }{k}), log.String()} {
				if !strings.Contains(shown, kind) || len(shown) > 150 || strings.Contains(shown, fmt.Sprintf("%x", secret[len(secret)-16:])) {
					t.Errorf("it shows %s", shown)
				}
			}
			var done sync.WaitGroup
			for range 4 {
				done.Go(func() {
					options, message := crypto.SignerOpts(crypto.SHA256), digest[:]
					if kind == "Ed25519" {
						options = crypto.Hash(0)
					}
					signature, err := k.Sign(rand.Reader, message, options)
					if err != nil {
						t.Error(err)
						return
					}
					switch public := k.Public().(type) {
					case *ecdsa.PublicKey:
						if !ecdsa.VerifyASN1(public, digest[:], signature) {
							t.Error("a wrong signature")
						}
					case *rsa.PublicKey:
						if err := rsa.VerifyPKCS1v15(public, crypto.SHA256, digest[:], signature); err != nil {
							t.Error(err)
						}
					case ed25519.PublicKey:
						if !ed25519.Verify(public, message, signature) {
							t.Error("a wrong signature")
						}
					}
				})
			}
			done.Wait()
		})
	}
}

func TestWhatIsNoKeyIsRefusedAndWiped(t *testing.T) {
	exchange, err := ecdh.X25519().GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	x25519, err := x509.MarshalPKCS8PrivateKey(exchange)
	if err != nil {
		t.Fatal(err)
	}
	for name, der := range map[string][]byte{
		"nothing": nil, "text": []byte("-----BEGIN PRIVATE KEY-----"), "a key that cannot sign": x25519, "too much": bytes.Repeat([]byte{0x30}, 1<<20),
	} {
		secret := string(der)
		_, err := identity.LoadKey(der)
		if err == nil {
			t.Errorf("%s is taken", name)
		} else if secret != "" && strings.Contains(err.Error(), secret[:min(len(secret), 16)]) {
			t.Errorf("%s: the error repeats it: %v", name, err)
		}
		if !bytes.Equal(der, make([]byte, len(der))) {
			t.Errorf("%s is not wiped", name)
		}
	}
}

// BenchmarkKeys is the measurement that Key's comment speaks of.
func BenchmarkKeys(b *testing.B) {
	digest := sha256.Sum256([]byte("x"))
	for name, der := range keys(b) {
		if strings.Contains(name, " in ") {
			continue
		}
		options := crypto.SignerOpts(crypto.SHA256)
		if name == "Ed25519" {
			options = crypto.Hash(0)
		}
		b.Run(name+"/parsed for each signature", func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				key, err := x509.ParsePKCS8PrivateKey(der)
				if err != nil {
					b.Fatal(err)
				}
				if _, err := key.(crypto.Signer).Sign(rand.Reader, digest[:], options); err != nil {
					b.Fatal(err)
				}
			}
		})
		k, err := identity.LoadKey(bytes.Clone(der))
		if err != nil {
			b.Fatal(err)
		}
		b.Run(name+"/Key", func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if _, err := k.Sign(rand.Reader, digest[:], options); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func FuzzLoadKey(f *testing.F) {
	for _, der := range keys(f) {
		f.Add(der)
	}
	f.Fuzz(func(t *testing.T, der []byte) {
		k, err := identity.LoadKey(bytes.Clone(der))
		if (k == nil) != (err != nil) {
			t.Error("neither a key nor an error, or both")
		}
		if k != nil && k.Public() == nil {
			t.Error("a key without a public one")
		}
	})
}
