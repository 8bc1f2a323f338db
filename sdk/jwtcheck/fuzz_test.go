package jwtcheck

import (
	"strings"
	"testing"
)

func FuzzVerifyJWT(f *testing.F) {
	v, keys, key := standard(f)
	good := forge(f, key, es, claims(f))
	f.Add(good)
	f.Add("..")
	f.Add(`{"payload":""}`)
	f.Add(strings.ToUpper(good))
	f.Fuzz(func(t *testing.T, token string) {
		got, err := v.Verify(keys, token, "db")
		if (err == nil) != (token == good) {
			t.Errorf("%q passes as %v, %v", token, got, err)
		}
		v.Subject(token)
	})
}

func FuzzJWTClaims(f *testing.F) {
	v, keys, key := standard(f)
	f.Add(claims(f))
	f.Add(`{"sub":"spiffe://example.org/web","aud":"db","exp":1e10,"nbf":-0}`)
	f.Add(`{"sub":"spiffe://example.org/web","aud":["db",["db"]],"exp":1800000300.999999999}`)
	f.Fuzz(func(t *testing.T, payload string) {
		if len(payload) > 4096 {
			return
		}
		got, err := v.Verify(keys, forge(t, key, es, payload), "db")
		if err == nil && (got.ID.TrustDomain() != domain || got.ExpiresAt.Before(at) || got.ExpiresAt.Year() > 9999 || len(got.Audience) == 0) {
			t.Errorf("%q passes as %+v", payload, got)
		}
	})
}

func FuzzJWTBundle(f *testing.F) {
	_, _, key := standard(f)
	f.Add(set(f, jwk(key, "same", "jwt-svid")))
	f.Add([]byte(`{"keys":[{"kty":"RSA","n":"","e":"AQAB","kid":"a","use":"jwt-svid"}]}`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		if b, err := ParseBundle(domain, raw); err != nil && b != nil {
			t.Error("keys beside an error")
		}
	})
}
