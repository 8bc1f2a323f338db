package identity

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
)

// Key is a private key that signs and is not given out. It is a crypto.Signer,
// for tls.Certificate.PrivateKey; formatted or logged, it shows what kind of
// key it is.
//
// How far its bytes are protected, and why so. LoadKey wipes what it is given.
// The parsed key that crypto signs with lies on the heap, which Go neither
// locks nor wipes; there is one of it, whose numbers are overwritten when the
// last reference to the Key is gone (crypto keeps a copy of its own, which goes
// back to the heap as it is). The alternative, to keep the encoded key in
// locked memory (sdk/secretmem) and parse it for each signature, was measured:
// it doubles the cost of a P-256 or Ed25519 signature, from about 25 to 50 µs,
// and leaves a new copy of the key in freed memory with each one, which is
// worse than one copy. It is right only where such copies are erased: a
// program that is built with GOEXPERIMENT=runtimesecret (Go 1.26, linux on
// amd64 and arm64) keeps the encoded key in locked memory, parses and signs in
// runtime/secret, and holds no parsed key. Either way secretmem.Harden keeps
// other processes, core dumps and swap away.
type Key struct {
	public crypto.PublicKey
	held   held
}

// LoadKey takes a private key (ECDSA, RSA or Ed25519) in DER: PKCS #8
// (RFC 5208), SEC 1 (RFC 5915) or PKCS #1 (RFC 8017 A.1.2). der is wiped, also
// when it is refused. No error repeats any of it.
func LoadKey(der []byte) (*Key, error) {
	defer clear(der)
	if len(der) > maxKey {
		return nil, fmt.Errorf("a private key of %d bytes: at most %d are read", len(der), maxKey)
	}
	signer, err := parseKey(der)
	if err != nil {
		return nil, err
	}
	k := &Key{public: signer.Public()}
	if err := k.hold(signer, der); err != nil {
		return nil, err
	}
	return k, nil
}

// maxKey is more than an RSA key of 8,192 bits takes.
const maxKey = 16 << 10

func parseKey(der []byte) (crypto.Signer, error) {
	parsed, err := x509.ParsePKCS8PrivateKey(der)
	if err != nil {
		if ec, ecErr := x509.ParseECPrivateKey(der); ecErr == nil {
			parsed, err = ec, nil
		} else if old, oldErr := x509.ParsePKCS1PrivateKey(der); oldErr == nil {
			parsed, err = old, nil
		}
	}
	if err != nil {
		return nil, errors.New("the private key does not parse as PKCS #8, SEC 1 or PKCS #1; is it encrypted?")
	}
	switch k := parsed.(type) {
	case *ecdsa.PrivateKey:
		return k, nil
	case *rsa.PrivateKey:
		return k, nil
	case ed25519.PrivateKey:
		return k, nil
	}
	return nil, fmt.Errorf("a private key of type %T cannot sign in TLS; ECDSA, RSA and Ed25519 can", parsed)
}

// Public implements crypto.Signer.
func (k *Key) Public() crypto.PublicKey { return k.public }

// Sign implements crypto.Signer.
func (k *Key) Sign(random io.Reader, digest []byte, options crypto.SignerOpts) ([]byte, error) {
	return k.sign(random, digest, options)
}

// String says what kind of key it is.
func (k *Key) String() string {
	switch public := k.public.(type) {
	case *ecdsa.PublicKey:
		return "private key (ECDSA " + public.Curve.Params().Name + ")"
	case *rsa.PublicKey:
		return fmt.Sprintf("private key (RSA %d)", public.N.BitLen())
	case ed25519.PublicKey:
		return "private key (Ed25519)"
	}
	return "private key"
}

// Format implements fmt.Formatter for every verb.
func (k *Key) Format(f fmt.State, _ rune) { io.WriteString(f, k.String()) }

// LogValue implements slog.LogValuer.
func (k *Key) LogValue() slog.Value { return slog.StringValue(k.String()) }
