package jwtcheck

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// One test for each MUST of the JWT-SVID standard that a validator decides.

// standard is a verifier with one P-256 key, kid "same".
func standard(t testing.TB) (*Verifier, *Keys, *ecdsa.PrivateKey) {
	key := newKey(t, elliptic.P256())
	return New(Config{Now: func() time.Time { return at }}), NewKeys(bundle(t, domain, jwk(key, "same", "jwt-svid"))), key
}

func mustRefuse(t *testing.T, v *Verifier, keys *Keys, what, token string, want Cause) {
	t.Helper()
	_, err := v.Verify(keys, token, "db")
	var refused *Error
	if !errors.As(err, &refused) || refused.Cause != want {
		t.Errorf("%s: %v, want it refused as %s", what, err, want)
	}
}

func TestJWTSVID1JSONSerialisationIsRefused(t *testing.T) {
	v, keys, key := standard(t)
	p := strings.Split(forge(t, key, es, claims(t)), ".")
	mustRefuse(t, v, keys, "flattened", fmt.Sprintf(`{"protected":%q,"payload":%q,"signature":%q}`, p[0], p[1], p[2]), Malformed)
	mustRefuse(t, v, keys, "general", fmt.Sprintf(`{"payload":%q,"signatures":[{"protected":%q,"signature":%q}]}`, p[1], p[0], p[2]), Malformed)
}

func TestJWTSVID2HeadersThatAreNotDescribedAreRefused(t *testing.T) {
	v, keys, key := standard(t)
	for _, member := range []string{`"jku":"x"`, `"jwk":{}`, `"x5u":"x"`, `"x5c":[]`, `"x5t":"x"`, `"x5t#S256":"x"`, `"cty":"JWT"`, `"crit":["exp"]`, `"b64":false`, `"zip":"DEF"`, `"enc":"A128GCM"`, `"private":1`} {
		mustRefuse(t, v, keys, member, forge(t, key, `{"alg":"ES256","kid":"same",`+member+`}`, claims(t)), BadHeader)
	}
}

func TestJWTSVID21EveryListedAlgorithmAndNoOtherPasses(t *testing.T) {
	p256, p384, p521 := newKey(t, elliptic.P256()), newKey(t, elliptic.P384()), newKey(t, elliptic.P521())
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	keys := NewKeys(bundle(t, domain, jwk(p256, "ES256", "jwt-svid"), jwk(p384, "ES384", "jwt-svid"), jwk(p521, "ES512", "jwt-svid"), jwk(rsaKey, "rsa", "jwt-svid")))
	v := New(Config{Now: func() time.Time { return at }})
	for _, alg := range algorithms {
		kid, key := string(alg), any(rsaKey)
		switch alg {
		case jose.ES256:
			key = p256
		case jose.ES384:
			key = p384
		case jose.ES512:
			key = p521
		default:
			kid = "rsa"
		}
		signer, err := jose.NewSigner(jose.SigningKey{Algorithm: alg, Key: jose.JSONWebKey{Key: key, KeyID: kid}}, nil)
		if err != nil {
			t.Fatal(err)
		}
		signed, err := signer.Sign([]byte(claims(t)))
		if err != nil {
			t.Fatal(err)
		}
		token, err := signed.CompactSerialize()
		if err != nil {
			t.Fatal(err)
		}
		if got, err := v.Verify(keys, token, "db"); err != nil || got.Algorithm != string(alg) {
			t.Errorf("%s: %v", alg, err)
		}
	}
	for _, alg := range []string{"none", "NONE", "", "HS256", "HS384", "HS512", "EdDSA", "ES256K", "RSA1_5", "dir", "A128KW", "ML-DSA-44", "es256"} {
		mustRefuse(t, v, keys, alg, forge(t, p256, fmt.Sprintf(`{"alg":%q,"kid":"ES256"}`, alg), claims(t)), WrongAlgorithm)
	}
}

func TestJWTSVID23TypIsJWTOrJOSE(t *testing.T) {
	v, keys, key := standard(t)
	for _, typ := range []string{"", `"typ":"JWT",`, `"typ":"JOSE",`} {
		if _, err := v.Verify(keys, forge(t, key, `{`+typ+`"alg":"ES256","kid":"same"}`, claims(t)), "db"); err != nil {
			t.Errorf("%q: %v", typ, err)
		}
	}
	for _, typ := range []string{`""`, `"jwt"`, `"JWE"`, `"at+jwt"`, `1`, `null`, `["JWT"]`} {
		mustRefuse(t, v, keys, typ, forge(t, key, `{"alg":"ES256","kid":"same","typ":`+typ+`}`, claims(t)), BadHeader)
	}
}

func TestJWTSVID31SubIsTheSPIFFEIDOfAWorkload(t *testing.T) {
	v, keys, key := standard(t)
	got, err := v.Verify(keys, forge(t, key, es, claims(t)), "db")
	if err != nil || got.ID != spiffeid.RequireFromString("spiffe://example.org/web") {
		t.Errorf("%v, %v", got, err)
	}
	for _, sub := range []string{`null`, `""`, `1`, `"web"`, `"https://example.org/web"`, `"spiffe://example.org"`, `"spiffe://example.org/"`, `"spiffe://EXAMPLE.org/web"`, `"spiffe://example.org/a//b"`, `"spiffe://example.org/web?x"`} {
		mustRefuse(t, v, keys, sub, forge(t, key, es, claims(t, `sub:`+sub)), BadSubject)
	}
	mustRefuse(t, v, keys, "none", forge(t, key, es, claims(t, `sub`)), BadSubject)
}

func TestJWTSVID32AudIsThereAndNamesTheValidator(t *testing.T) {
	v, keys, key := standard(t)
	mustRefuse(t, v, keys, "none", forge(t, key, es, claims(t, `aud`)), WrongAudience)
	mustRefuse(t, v, keys, "empty", forge(t, key, es, claims(t, `aud:[]`)), WrongAudience)
	mustRefuse(t, v, keys, "another's", forge(t, key, es, claims(t, `aud:["cache"]`)), WrongAudience)
	if _, err := v.Verify(keys, forge(t, key, es, claims(t, `aud:["cache","db"]`)), "db"); err != nil {
		t.Error(err)
	}
}

func TestJWTSVID33ExpIsThere(t *testing.T) {
	v, keys, key := standard(t)
	mustRefuse(t, v, keys, "none", forge(t, key, es, claims(t, `exp`)), BadClaims)
	mustRefuse(t, v, keys, "past", forge(t, key, es, claims(t, `exp:1799999999`)), Expired)
}

func TestJWTSVID4TheAlgorithmIsJudgedBeforeTheSignature(t *testing.T) {
	v, keys, _ := standard(t)
	mustRefuse(t, v, keys, "no such key, no such algorithm", forge(t, []byte("k"), `{"alg":"HS256","kid":"none"}`, claims(t)), WrongAlgorithm)
}

func TestJWTSVID4SignaturesAreValidated(t *testing.T) {
	v, keys, key := standard(t)
	p := strings.Split(forge(t, key, es, claims(t)), ".")
	q := strings.Split(forge(t, key, es, claims(t, `aud:["x","db"]`)), ".")
	mustRefuse(t, v, keys, "another token's signature", p[0]+"."+p[1]+"."+q[2], BadSignature)
	mustRefuse(t, v, keys, "a short one", p[0]+"."+p[1]+"."+p[2][:40], BadSignature)
	mustRefuse(t, v, keys, "zeros", p[0]+"."+p[1]+"."+strings.Repeat("A", 86), BadSignature)
	mustRefuse(t, v, keys, "another header", strings.Split(forge(t, key, `{"alg":"ES256","kid":"same"}`, "{}"), ".")[0]+"."+p[1]+"."+p[2], BadSignature)
}

func TestJWTSVID51OnlyCompactSerialisation(t *testing.T) {
	v, keys, key := standard(t)
	good := forge(t, key, es, claims(t))
	for what, token := range map[string]string{"four parts": good + ".eA", "two parts": good[:strings.LastIndexByte(good, '.')], "Bearer before it": "Bearer " + good, "a space after it": good + " "} {
		mustRefuse(t, v, keys, what, token, Malformed)
	}
}

func TestJWTSVID61KeysAreJWTSVIDKeysWithAKid(t *testing.T) {
	v, _, key := standard(t)
	keys := NewKeys(bundle(t, domain, jwk(key, "x509", "x509-svid"), jwk(key, "sig", "sig"), jwk(key, "none", ""), jwk(key, "", "jwt-svid")))
	for _, kid := range []string{"x509", "sig", "none"} {
		mustRefuse(t, v, keys, kid, forge(t, key, `{"alg":"ES256","kid":"`+kid+`"}`, claims(t)), UnknownKey)
	}
}

func TestJWTSVID62ADomainWithoutJWTKeysIssuesNoTokens(t *testing.T) {
	v, _, key := standard(t)
	mustRefuse(t, v, NewKeys(bundle(t, domain, jwk(key, "same", "x509-svid"))), "an X.509 bundle", forge(t, key, es, claims(t)), UnknownKey)
	mustRefuse(t, v, NewKeys(bundle(t, partner, jwk(key, "same", "jwt-svid"))), "another domain's bundle", forge(t, key, es, claims(t)), UnknownTrustDomain)
}

func TestWorkloadAPISetsMayLeaveOutUse(t *testing.T) {
	v, _, key := standard(t)
	b, err := ParseWorkloadAPI(domain, set(t, jwk(key, "same", ""), jwk(key, "x509", "x509-svid")))
	if err != nil || b.Len() != 1 || b.TrustDomain() != domain {
		t.Fatalf("%v, %v", b, err)
	}
	if _, err := v.Verify(NewKeys(b), forge(t, key, es, claims(t)), "db"); err != nil {
		t.Error(err)
	}
}
