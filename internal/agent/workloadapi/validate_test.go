package workloadapi

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/hmac"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/legation-io/legation/internal/agent/svid"
)

// forge signs any header and payload by hand, as libraries would not.
func forge(t testing.TB, key any, header, payload string) string {
	t.Helper()
	b64 := base64.RawURLEncoding.EncodeToString
	input := b64([]byte(header)) + "." + b64([]byte(payload))
	sum := sha256.Sum256([]byte(input))
	var sig []byte
	switch k := key.(type) {
	case *ecdsa.PrivateKey:
		r, s, err := ecdsa.Sign(rand.Reader, k, sum[:])
		if err != nil {
			t.Fatal(err)
		}
		sig = append(r.FillBytes(make([]byte, 32)), s.FillBytes(make([]byte, 32))...)
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

func TestA55TokensThatMustNotPass(t *testing.T) {
	own, partner := newAuthority(t, domain, "same"), newAuthority(t, "partner.example", "same")
	attacker, _ := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	jwks, err := json.Marshal(jose.JSONWebKeySet{Keys: []jose.JSONWebKey{
		{Key: &own.key.PublicKey, KeyID: "same", Use: "jwt-svid"},
		{Key: &rsaKey.PublicKey, KeyID: "rsa", Use: "jwt-svid"},
		{Key: &attacker.PublicKey, KeyID: "x509", Use: "x509-svid"},
		{Key: &attacker.PublicKey, KeyID: "nouse"},
	}})
	if err != nil {
		t.Fatal(err)
	}
	s := &Server{log: slog.New(slog.DiscardHandler)}
	keys := s.keysOf(&svid.Trust{TrustDomain: domain, JWKS: map[string][]byte{domain: jwks, "partner.example": partner.bundle(t).Jwks}})
	now := time.Unix(1_800_000_000, 0)

	const es = `{"alg":"ES256","kid":"same","typ":"JWT"}`
	claims := func(with ...string) string { // later ones win
		m := map[string]json.RawMessage{}
		for _, w := range append([]string{`"sub":"spiffe://example.org/web"`, `"aud":["db"]`, `"exp":1800000300`}, with...) {
			k, v, _ := strings.Cut(w, ":")
			if v == "" {
				delete(m, strings.Trim(k, `"`))
				continue
			}
			m[strings.Trim(k, `"`)] = json.RawMessage(v)
		}
		raw, err := json.Marshal(m)
		if err != nil {
			t.Fatal(err)
		}
		return string(raw)
	}
	good := forge(t, own.key, es, claims())
	parts := strings.Split(good, ".")
	publicJWK, _ := json.Marshal(jose.JSONWebKey{Key: &attacker.PublicKey, KeyID: "same"})
	point, err := own.key.PublicKey.Bytes()
	if err != nil {
		t.Fatal(err)
	}

	passes := map[string]string{
		"the plain one":                      good,
		"one audience as a string":           forge(t, own.key, es, claims(`"aud":"db"`)),
		"several audiences":                  forge(t, own.key, es, claims(`"aud":["x","db"]`)),
		"RS256":                              forge(t, rsaKey, `{"alg":"RS256","kid":"rsa"}`, claims()),
		"a foreign domain's own":             forge(t, partner.key, es, claims(`"sub":"spiffe://partner.example/web"`)),
		"nbf and iat within the leeway":      forge(t, own.key, es, claims(`"nbf":1800000030`, `"iat":1800000030`)),
		"a jwk header beside the right key":  forge(t, own.key, `{"alg":"ES256","kid":"same","jku":"https://evil.example/k"}`, claims()),
		"further claims, which are returned": forge(t, own.key, es, claims(`"role":"admin"`)),
	}
	for name, token := range passes {
		if _, _, err := validate(token, "db", keys, now); err != nil {
			t.Errorf("%s: refused: %v", name, err)
		}
	}

	refused := map[string]string{
		"no exp":                             forge(t, own.key, es, claims(`"exp"`)),
		"exp null":                           forge(t, own.key, es, claims(`"exp":null`)),
		"exp as text":                        forge(t, own.key, es, claims(`"exp":"1800000300"`)),
		"expired a second ago":               forge(t, own.key, es, claims(`"exp":1799999999`)),
		"expired now":                        forge(t, own.key, es, claims(`"exp":1800000000`)),
		"no aud":                             forge(t, own.key, es, claims(`"aud"`)),
		"an empty aud":                       forge(t, own.key, es, claims(`"aud":[]`)),
		"an aud that contains ours":          forge(t, own.key, es, claims(`"aud":"mydb"`)),
		"an aud that begins with ours":       forge(t, own.key, es, claims(`"aud":["db2"]`)),
		"an aud in another case":             forge(t, own.key, es, claims(`"aud":["DB"]`)),
		"an aud that lists ours in one text": forge(t, own.key, es, claims(`"aud":"x db"`)),
		"an aud that is an object":           forge(t, own.key, es, claims(`"aud":{"db":1}`)),
		"no sub":                             forge(t, own.key, es, claims(`"sub"`)),
		"a sub that is no SPIFFE ID":         forge(t, own.key, es, claims(`"sub":"web"`)),
		"a sub with dots":                    forge(t, own.key, es, claims(`"sub":"spiffe://example.org/../web"`)),
		"a domain nobody trusts":             forge(t, own.key, es, claims(`"sub":"spiffe://evil.example/web"`)),
		"another domain's key, the same kid": forge(t, partner.key, es, claims()),
		"our key for another domain":         forge(t, own.key, es, claims(`"sub":"spiffe://partner.example/web"`)),
		"an attacker's key":                  forge(t, attacker, es, claims()),
		"an attacker's key in jwk":           forge(t, attacker, `{"alg":"ES256","kid":"same","jwk":`+string(publicJWK)+`}`, claims()),
		"an attacker's key at jku":           forge(t, attacker, `{"alg":"ES256","kid":"same","jku":"https://evil.example/k"}`, claims()),
		"a key for X.509 only":               forge(t, attacker, `{"alg":"ES256","kid":"x509"}`, claims()),
		"a key of no use":                    forge(t, attacker, `{"alg":"ES256","kid":"nouse"}`, claims()),
		"an unknown kid":                     forge(t, own.key, `{"alg":"ES256","kid":"other"}`, claims()),
		"no kid":                             forge(t, own.key, `{"alg":"ES256"}`, claims()),
		"alg none":                           forge(t, nil, `{"alg":"none","kid":"same"}`, claims()),
		"alg None":                           forge(t, nil, `{"alg":"None","kid":"same"}`, claims()),
		"HMAC with the public key":           forge(t, point, `{"alg":"HS256","kid":"same"}`, claims()),
		"an RSA signature under an EC key":   forge(t, rsaKey, `{"alg":"RS256","kid":"same"}`, claims()),
		"an algorithm that is not the key's": forge(t, own.key, `{"alg":"ES384","kid":"same"}`, claims()),
		"a crit that nobody knows":           forge(t, own.key, `{"alg":"ES256","kid":"same","crit":["x"],"x":1}`, claims()),
		"crit b64":                           forge(t, own.key, `{"alg":"ES256","kid":"same","crit":["b64"],"b64":true}`, claims()),
		"another typ":                        forge(t, own.key, `{"alg":"ES256","kid":"same","typ":"at+jwt"}`, claims()),
		"nbf in the future":                  forge(t, own.key, es, claims(`"nbf":1800000120`)),
		"iat in the future":                  forge(t, own.key, es, claims(`"iat":1800000120`)),
		"sub twice":                          forge(t, own.key, es, `{"sub":"spiffe://example.org/web","sub":"spiffe://example.org/admin","aud":["db"],"exp":1800000300}`),
		"exp twice":                          forge(t, own.key, es, `{"sub":"spiffe://example.org/web","aud":["db"],"exp":1,"exp":1800000300}`),
		"alg twice":                          forge(t, own.key, `{"alg":"none","alg":"ES256","kid":"same"}`, claims()),
		"JSON serialisation":                 fmt.Sprintf(`{"protected":%q,"payload":%q,"signature":%q}`, parts[0], parts[1], parts[2]),
		"two parts":                          parts[0] + "." + parts[1],
		"four parts":                         good + ".x",
		"five parts, as JWE":                 good + ".x.y",
		"no signature":                       parts[0] + "." + parts[1] + ".",
		"a changed payload":                  parts[0] + "." + base64.RawURLEncoding.EncodeToString([]byte(claims(`"sub":"spiffe://example.org/admin"`))) + "." + parts[2],
		"with a newline":                     good + "\n",
		"with padding":                       parts[0] + "." + parts[1] + "." + parts[2] + "==",
		"nothing":                            "",
		"claims that are no object":          forge(t, own.key, es, `"x"`),
	}
	for name, token := range refused {
		t.Run(name, func(t *testing.T) {
			if id, _, err := validate(token, "db", keys, now); err == nil {
				t.Errorf("accepted as %s", id)
			}
		})
	}
}

func TestA56GiantTokensCostNothing(t *testing.T) {
	keys := &keySet{byDomain: map[string]map[string]any{}}
	for name, token := range map[string]string{
		"a megabyte of dots":        strings.Repeat(".", 1<<20),
		"dots just below the limit": strings.Repeat(".", maxToken),
		"a megabyte of letters":     strings.Repeat("a", 1<<20),
		"a giant header":            strings.Repeat("a", maxToken-10) + ".a.a",
		"a deep header":             base64.RawURLEncoding.EncodeToString([]byte(strings.Repeat("[", 8000))) + ".e30.a",
	} {
		const times = 20
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		begun := time.Now()
		for range times {
			if _, _, err := validate(token, "db", keys, time.Now()); err == nil {
				t.Errorf("%s: accepted", name)
			}
		}
		took := time.Since(begun) / times
		runtime.ReadMemStats(&after)
		if took > 5*time.Millisecond {
			t.Errorf("%s: %v each", name, took)
		}
		if bytes := (after.TotalAlloc - before.TotalAlloc) / times; bytes > 1<<20 {
			t.Errorf("%s: %d bytes each", name, bytes)
		}
	}
}

func FuzzValidate(f *testing.F) {
	own := newAuthority(f, domain, "k")
	s := &Server{log: slog.New(slog.DiscardHandler)}
	keys := s.keysOf(&svid.Trust{JWKS: map[string][]byte{domain: own.bundle(f).Jwks}})
	now := time.Unix(1_800_000_000, 0)
	good := forge(f, own.key, `{"alg":"ES256","kid":"k"}`, `{"sub":"spiffe://example.org/web","aud":["db"],"exp":1800000300}`)
	f.Add(good)
	f.Add("..")
	f.Add(`{"payload":""}`)
	f.Fuzz(func(t *testing.T, token string) {
		id, _, err := validate(token, "db", keys, now)
		if err == nil && id.String() != "spiffe://example.org/web" {
			t.Errorf("%q passes as %s", token, id)
		}
	})
}

func FuzzParseKeys(f *testing.F) {
	f.Add([]byte(newAuthority(f, domain, "k").bundle(f).Jwks))
	f.Add([]byte(`{"keys":[{"kty":"RSA","n":"","e":"AQAB","kid":"a","use":"jwt-svid"}]}`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		keys, err := parseKeys(raw)
		if err != nil && keys != nil {
			t.Error("keys beside an error")
		}
	})
}
