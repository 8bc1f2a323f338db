package jwtcheck

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/hmac"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	_ "crypto/sha512" // for ES384 and ES512
	"encoding/base64"
	"encoding/json"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

var (
	domain  = spiffeid.RequireTrustDomainFromString("example.org")
	partner = spiffeid.RequireTrustDomainFromString("partner.example")
)

// at is the time of the tests.
var at = time.Unix(1_800_000_000, 0)

const es = `{"alg":"ES256","kid":"same","typ":"JWT"}`

func newKey(t testing.TB, curve elliptic.Curve) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(curve, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func jwk(key crypto.Signer, kid, use string) jose.JSONWebKey {
	return jose.JSONWebKey{Key: key.Public(), KeyID: kid, Use: use}
}

func set(t testing.TB, keys ...jose.JSONWebKey) []byte {
	t.Helper()
	raw, err := json.Marshal(jose.JSONWebKeySet{Keys: keys})
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

func bundle(t testing.TB, td spiffeid.TrustDomain, keys ...jose.JSONWebKey) *Bundle {
	t.Helper()
	b, err := ParseBundle(td, set(t, keys...))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// forge signs any header and payload by hand, as libraries would not.
func forge(t testing.TB, key any, header, payload string) string {
	t.Helper()
	b64 := base64.RawURLEncoding.EncodeToString
	input := b64([]byte(header)) + "." + b64([]byte(payload))
	sum := sha256.Sum256([]byte(input))
	var sig []byte
	switch k := key.(type) {
	case *ecdsa.PrivateKey:
		hash, size := crypto.SHA256, 32
		switch k.Curve {
		case elliptic.P384():
			hash, size = crypto.SHA384, 48
		case elliptic.P521():
			hash, size = crypto.SHA512, 66
		}
		h := hash.New()
		io.WriteString(h, input)
		r, s, err := ecdsa.Sign(rand.Reader, k, h.Sum(nil))
		if err != nil {
			t.Fatal(err)
		}
		sig = append(r.FillBytes(make([]byte, size)), s.FillBytes(make([]byte, size))...)
	case *rsa.PrivateKey:
		var err error
		if sig, err = rsa.SignPKCS1v15(rand.Reader, k, crypto.SHA256, sum[:]); err != nil {
			t.Fatal(err)
		}
	case []byte:
		mac := hmac.New(sha256.New, k)
		io.WriteString(mac, input)
		sig = mac.Sum(nil)
	}
	return input + "." + b64(sig)
}

// claims are good ones, changed: "name:value" sets, "name" removes.
func claims(t testing.TB, with ...string) string {
	t.Helper()
	m := map[string]json.RawMessage{}
	for _, w := range append([]string{`sub:"spiffe://example.org/web"`, `aud:["db"]`, `exp:1800000300`}, with...) {
		k, v, ok := strings.Cut(w, ":")
		if !ok {
			delete(m, k)
			continue
		}
		m[k] = json.RawMessage(v)
	}
	raw, err := json.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	return string(raw)
}
