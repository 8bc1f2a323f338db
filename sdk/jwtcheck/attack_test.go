package jwtcheck

import (
	"bytes"
	"compress/flate"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
)

func TestA55TokensThatMustNotPass(t *testing.T) {
	own, foreign, attacker := newKey(t, elliptic.P256()), newKey(t, elliptic.P256()), newKey(t, elliptic.P256())
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	weak, err := rsa.GenerateKey(rand.Reader, 1024)
	if err != nil {
		t.Fatal(err)
	}
	keys := NewKeys(
		bundle(t, domain, jwk(own, "same", "jwt-svid"), jwk(rsaKey, "rsa", "jwt-svid"), jwk(attacker, "x509", "x509-svid"),
			jwk(attacker, "nouse", ""), jwk(weak, "weak", "jwt-svid"), jwk(attacker, "same", "jwt-svid")),
		bundle(t, partner, jwk(foreign, "same", "jwt-svid")),
	)
	c := func(with ...string) string { return claims(t, with...) }
	good := forge(t, own, es, c())
	parts := strings.Split(good, ".")
	publicJWK, _ := json.Marshal(jose.JSONWebKey{Key: &attacker.PublicKey, KeyID: "same"})
	point, err := own.PublicKey.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	v := New(Config{Now: func() time.Time { return at }})

	for name, token := range map[string]string{
		"the plain one":                      good,
		"one audience as a string":           forge(t, own, es, c(`aud:"db"`)),
		"several audiences":                  forge(t, own, es, c(`aud:["x","db"]`)),
		"RS256":                              forge(t, rsaKey, `{"alg":"RS256","kid":"rsa"}`, c()),
		"typ JOSE":                           forge(t, own, `{"alg":"ES256","kid":"same","typ":"JOSE"}`, c()),
		"a foreign domain's own":             forge(t, foreign, es, c(`sub:"spiffe://partner.example/web"`)),
		"nbf and iat within the leeway":      forge(t, own, es, c(`nbf:1800000030`, `iat:1800000030`)),
		"further claims, which are returned": forge(t, own, es, c(`role:"admin"`)),
		"an exp with a fraction":             forge(t, own, es, c(`exp:1800000300.5`)),
	} {
		if _, err := v.Verify(keys, token, "db"); err != nil {
			t.Errorf("%s: refused: %v", name, err)
		}
	}

	for name, tc := range map[string]struct {
		cause Cause
		token string
	}{
		"no exp":                                  {BadClaims, forge(t, own, es, c(`exp`))},
		"exp null":                                {BadClaims, forge(t, own, es, c(`exp:null`))},
		"exp as text":                             {BadClaims, forge(t, own, es, c(`exp:"1800000300"`))},
		"exp in the year 30000":                   {BadClaims, forge(t, own, es, c(`exp:1e12`))},
		"exp beyond all numbers":                  {BadClaims, forge(t, own, es, c(`exp:1e999`))},
		"exp zero":                                {BadClaims, forge(t, own, es, c(`exp:0`))},
		"a negative exp":                          {BadClaims, forge(t, own, es, c(`exp:-1`))},
		"expired a second ago":                    {Expired, forge(t, own, es, c(`exp:1799999999`))},
		"expired now":                             {Expired, forge(t, own, es, c(`exp:1800000000`))},
		"no aud":                                  {WrongAudience, forge(t, own, es, c(`aud`))},
		"an empty aud":                            {WrongAudience, forge(t, own, es, c(`aud:[]`))},
		"an aud that contains ours":               {WrongAudience, forge(t, own, es, c(`aud:"mydb"`))},
		"an aud that begins with ours":            {WrongAudience, forge(t, own, es, c(`aud:["db2"]`))},
		"an aud in another case":                  {WrongAudience, forge(t, own, es, c(`aud:["DB"]`))},
		"an aud that lists ours in one text":      {WrongAudience, forge(t, own, es, c(`aud:"x db"`))},
		"an aud that is an object":                {BadClaims, forge(t, own, es, c(`aud:{"db":1}`))},
		"an aud with a number in it":              {BadClaims, forge(t, own, es, c(`aud:["db",1]`))},
		"a hundred audiences":                     {BadClaims, forge(t, own, es, c(`aud:["db"`+strings.Repeat(`,"x"`, 100)+`]`))},
		"no sub":                                  {BadSubject, forge(t, own, es, c(`sub`))},
		"a sub that is a number":                  {BadSubject, forge(t, own, es, c(`sub:1`))},
		"a sub that is no SPIFFE ID":              {BadSubject, forge(t, own, es, c(`sub:"web"`))},
		"a sub with dots":                         {BadSubject, forge(t, own, es, c(`sub:"spiffe://example.org/../web"`))},
		"a sub with a percent sign":               {BadSubject, forge(t, own, es, c(`sub:"spiffe://example.org/%77eb"`))},
		"a sub that is a trust domain":            {BadSubject, forge(t, own, es, c(`sub:"spiffe://example.org"`))},
		"a domain nobody trusts":                  {UnknownTrustDomain, forge(t, own, es, c(`sub:"spiffe://evil.example/web"`))},
		"another domain's key, the same kid":      {BadSignature, forge(t, foreign, es, c())},
		"our key for another domain":              {BadSignature, forge(t, own, es, c(`sub:"spiffe://partner.example/web"`))},
		"an attacker's key":                       {BadSignature, forge(t, attacker, es, c())},
		"an attacker's key in jwk":                {BadHeader, forge(t, attacker, `{"alg":"ES256","kid":"same","jwk":`+string(publicJWK)+`}`, c())},
		"a jwk beside the right key":              {BadHeader, forge(t, own, `{"alg":"ES256","kid":"same","jwk":`+string(publicJWK)+`}`, c())},
		"an attacker's key at jku":                {BadHeader, forge(t, attacker, `{"alg":"ES256","kid":"same","jku":"https://evil.example/k"}`, c())},
		"a jku beside the right key":              {BadHeader, forge(t, own, `{"alg":"ES256","kid":"same","jku":"https://evil.example/k"}`, c())},
		"x5u":                                     {BadHeader, forge(t, own, `{"alg":"ES256","kid":"same","x5u":"https://evil.example/k"}`, c())},
		"x5c":                                     {BadHeader, forge(t, own, `{"alg":"ES256","kid":"same","x5c":["MIIB"]}`, c())},
		"zip":                                     {BadHeader, forge(t, own, `{"alg":"ES256","kid":"same","zip":"DEF"}`, c())},
		"a private member":                        {BadHeader, forge(t, own, `{"alg":"ES256","kid":"same","x":1}`, c())},
		"Alg instead of alg":                      {BadHeader, forge(t, own, `{"Alg":"ES256","kid":"same"}`, c())},
		"a key for X.509 only":                    {UnknownKey, forge(t, attacker, `{"alg":"ES256","kid":"x509"}`, c())},
		"a key of no use":                         {UnknownKey, forge(t, attacker, `{"alg":"ES256","kid":"nouse"}`, c())},
		"a key of 1,024 bits":                     {UnknownKey, forge(t, weak, `{"alg":"RS256","kid":"weak"}`, c())},
		"an unknown kid":                          {UnknownKey, forge(t, own, `{"alg":"ES256","kid":"other"}`, c())},
		"no kid":                                  {BadHeader, forge(t, own, `{"alg":"ES256"}`, c())},
		"a kid that is a number":                  {BadHeader, forge(t, own, `{"alg":"ES256","kid":1}`, c())},
		"alg none":                                {WrongAlgorithm, forge(t, []byte(nil), `{"alg":"none","kid":"same"}`, c())},
		"alg None":                                {WrongAlgorithm, forge(t, []byte(nil), `{"alg":"None","kid":"same"}`, c())},
		"no alg":                                  {WrongAlgorithm, forge(t, own, `{"kid":"same"}`, c())},
		"HMAC with the public key":                {WrongAlgorithm, forge(t, point, `{"alg":"HS256","kid":"same"}`, c())},
		"EdDSA, which the standard does not list": {WrongAlgorithm, forge(t, own, `{"alg":"EdDSA","kid":"same"}`, c())},
		"a key encryption algorithm":              {WrongAlgorithm, forge(t, own, `{"alg":"PBES2-HS256+A128KW","kid":"same"}`, c())},
		"an RSA signature under an EC key":        {WrongAlgorithm, forge(t, rsaKey, `{"alg":"RS256","kid":"same"}`, c())},
		"an algorithm that is not the key's":      {WrongAlgorithm, forge(t, own, `{"alg":"ES384","kid":"same"}`, c())},
		"a crit that nobody knows":                {BadHeader, forge(t, own, `{"alg":"ES256","kid":"same","crit":["x"],"x":1}`, c())},
		"crit b64":                                {BadHeader, forge(t, own, `{"alg":"ES256","kid":"same","crit":["b64"],"b64":true}`, c())},
		"another typ":                             {BadHeader, forge(t, own, `{"alg":"ES256","kid":"same","typ":"at+jwt"}`, c())},
		"typ in lower case":                       {BadHeader, forge(t, own, `{"alg":"ES256","kid":"same","typ":"jwt"}`, c())},
		"nbf in the future":                       {NotYetValid, forge(t, own, es, c(`nbf:1800000120`))},
		"iat in the future":                       {NotYetValid, forge(t, own, es, c(`iat:1800000120`))},
		"nbf as text":                             {BadClaims, forge(t, own, es, c(`nbf:"1"`))},
		"sub twice":                               {BadClaims, forge(t, own, es, `{"sub":"spiffe://example.org/web","sub":"spiffe://example.org/admin","aud":["db"],"exp":1800000300}`)},
		"exp twice":                               {BadClaims, forge(t, own, es, `{"sub":"spiffe://example.org/web","aud":["db"],"exp":1,"exp":1800000300}`)},
		"sub twice, once escaped":                 {BadClaims, forge(t, own, es, `{"sub":"spiffe://example.org/web","s\u0075b":"spiffe://example.org/admin","aud":["db"],"exp":1800000300}`)},
		"a member twice inside ext":               {BadClaims, forge(t, own, es, c(`ext:{"a":"1","a":"2"}`))},
		"alg twice":                               {BadHeader, forge(t, own, `{"alg":"none","alg":"ES256","kid":"same"}`, c())},
		"claims that are not UTF-8":               {BadClaims, forge(t, own, es, `{"sub":"spiffe://example.org/web","aud":["db"],"exp":1800000300,"x":"`+"\xff"+`"}`)},
		"two JSON values":                         {BadClaims, forge(t, own, es, c()+`{}`)},
		"claims that are no object":               {BadClaims, forge(t, own, es, `"x"`)},
		"claims that are null":                    {BadClaims, forge(t, own, es, `null`)},
		"JSON serialisation":                      {Malformed, fmt.Sprintf(`{"protected":%q,"payload":%q,"signature":%q}`, parts[0], parts[1], parts[2])},
		"two parts":                               {Malformed, parts[0] + "." + parts[1]},
		"four parts":                              {Malformed, good + ".x"},
		"five parts, as JWE":                      {Malformed, good + ".x.y"},
		"no signature":                            {Malformed, parts[0] + "." + parts[1] + "."},
		"no payload":                              {Malformed, parts[0] + ".." + parts[2]},
		"no header":                               {Malformed, "." + parts[1] + "." + parts[2]},
		"a changed payload":                       {BadSignature, parts[0] + "." + base64.RawURLEncoding.EncodeToString([]byte(c(`sub:"spiffe://example.org/admin"`))) + "." + parts[2]},
		"with a newline":                          {Malformed, good + "\n"},
		"with a newline inside":                   {Malformed, parts[0] + "." + parts[1] + "\r\n." + parts[2]},
		"with padding":                            {Malformed, good + "=="},
		"in standard base64":                      {Malformed, parts[0] + "." + parts[1] + "." + "+/" + parts[2][2:]},
		"another spelling of the signature":       {Malformed, good[:len(good)-1] + stray(good[len(good)-1])},
		"nothing":                                 {Malformed, ""},
	} {
		t.Run(name, func(t *testing.T) {
			for range 2 { // a refusal is not remembered as anything else
				token, err := v.Verify(keys, tc.token, "db")
				var refused *Error
				if !errors.As(err, &refused) {
					t.Fatalf("accepted as %v, %v", token, err)
				}
				if refused.Cause != tc.cause {
					t.Errorf("cause %s, want %s: %v", refused.Cause, tc.cause, err)
				}
			}
		})
	}
	if _, err := v.Verify(nil, good, "db"); err == nil {
		t.Error("accepted without any keys")
	}
	if _, err := v.Verify(keys, good, ""); err == nil {
		t.Error("accepted for no audience")
	}
}

// stray is a character that decodes to the same byte, with bits to spare.
func stray(c byte) string {
	const alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
	return string(alphabet[strings.IndexByte(alphabet, c)+1])
}

func TestA56GiantTokensCostNothing(t *testing.T) {
	own := newKey(t, elliptic.P256())
	keys := NewKeys(bundle(t, domain, jwk(own, "same", "jwt-svid")))
	b64 := base64.RawURLEncoding.EncodeToString
	var bomb bytes.Buffer
	w, _ := flate.NewWriter(&bomb, flate.BestCompression)
	w.Write(make([]byte, 10<<20))
	w.Close()
	for name, token := range map[string]string{
		"a megabyte of dots":          strings.Repeat(".", 1<<20),
		"dots just below the limit":   strings.Repeat(".", DefaultMaxBytes),
		"a megabyte of letters":       strings.Repeat("a", 1<<20),
		"a giant header":              strings.Repeat("a", DefaultMaxBytes-10) + ".a.a",
		"a deep header":               b64([]byte(strings.Repeat("[", 8000))) + ".e30.aa",
		"deep claims":                 b64([]byte(es)) + "." + b64([]byte(strings.Repeat(`{"a":`, 2000)+"1"+strings.Repeat("}", 2000))) + ".aa",
		"many members":                b64([]byte(es)) + "." + b64([]byte(`{"a":1`+strings.Repeat(`,"a":1`, 1500)+"}")) + ".aa",
		"a number of 8,000 digits":    b64([]byte(es)) + "." + b64([]byte(`{"exp":`+strings.Repeat("9", 8000)+"}")) + ".aa",
		"a zip bomb as JWE":           b64([]byte(`{"alg":"dir","enc":"A128GCM","zip":"DEF"}`)) + "..AAAA." + b64(bomb.Bytes()) + ".AAAA",
		"a zip bomb as JWS":           b64([]byte(`{"alg":"ES256","kid":"same","zip":"DEF"}`)) + "." + b64(bomb.Bytes()) + ".AAAA",
		"an iteration count of 2^31":  b64([]byte(`{"alg":"PBES2-HS512+A256KW","enc":"A256GCM","p2c":2147483647,"p2s":"AAAA"}`)) + ".AAAA.AAAA.AAAA.AAAA",
		"a signature of ten kilobyte": b64([]byte(es)) + "." + b64([]byte(claims(t))) + "." + strings.Repeat("A", 10<<10),
	} {
		const times = 20
		v := New(Config{})
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		begun := time.Now()
		for range times {
			if _, err := v.Verify(keys, token, "db"); err == nil {
				t.Errorf("%s: accepted", name)
			}
		}
		took := time.Since(begun) / times
		runtime.ReadMemStats(&after)
		if took > time.Second { // of microseconds
			t.Errorf("%s: %v each", name, took)
		}
		if bytes := (after.TotalAlloc - before.TotalAlloc) / times; bytes > 1<<20 {
			t.Errorf("%s: %d bytes each", name, bytes)
		}
		if n := v.cache.len(); n != 0 {
			t.Errorf("%s: %d refused tokens are remembered", name, n)
		}
	}
}
