package jwtcheck

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"crypto/elliptic"

	"github.com/go-jose/go-jose/v4"
)

// Tokens that a genuine key signed, by an authority that has gone wrong.
func TestA55SignedTokensThatMustNotPass(t *testing.T) {
	key := newKey(t, elliptic.P256())
	keys := NewKeys(bundle(t, domain, jwk(key, "same", "jwt-svid")))
	v := New(Config{Now: func() time.Time { return at }})
	deep := strings.Repeat("[", maxDepth) + strings.Repeat("]", maxDepth)
	text := `"` + strings.Repeat(`[{\\\"`, maxDepth) + `"`
	for name, tt := range map[string]struct {
		token, audience string
		want            Cause // empty: accepted
	}{
		"for nobody, asked for nobody":  {forge(t, key, es, claims(t, `aud:[""]`)), "", WrongAudience},
		"iat as text":                   {forge(t, key, es, claims(t, `iat:"1"`)), "db", BadClaims},
		"iat before the epoch":          {forge(t, key, es, claims(t, `iat:-5`)), "db", BadClaims},
		"nested too deep":               {forge(t, key, es, claims(t, `x:`+deep)), "db", BadClaims},
		"nested as deep as may be":      {forge(t, key, es, claims(t, `x:`+deep[1:len(deep)-1])), "db", ""},
		"brackets in text are no depth": {forge(t, key, es, claims(t, `x:`+text)), "db", ""},
		"closed before it is opened":    {forge(t, key, es, `}}}}`+claims(t)), "db", BadClaims},
	} {
		_, err := v.Verify(keys, tt.token, tt.audience)
		var refused *Error
		if tt.want == "" && err != nil || tt.want != "" && (!errors.As(err, &refused) || refused.Cause != tt.want) {
			t.Errorf("%s: want %q, got %v", name, tt.want, err)
		}
	}
}

// Keys that were put into a bundle by mistake verify nothing, and bundles
// without end are not read.
func TestA55KeysThatNobodyMaySignWith(t *testing.T) {
	key := newKey(t, elliptic.P256())
	for name, k := range map[string]jose.JSONWebKey{
		"a private key":    {Key: key, KeyID: "same", Use: "jwt-svid"},
		"a shared secret":  {Key: []byte("0123456789abcdef0123456789abcdef"), KeyID: "same", Use: "jwt-svid"},
		"a key of no name": {Key: key.Public(), Use: "jwt-svid"},
	} {
		if b := bundle(t, domain, k); b.Len() != 0 {
			t.Errorf("%s is taken", name)
		}
	}
	var many []jose.JSONWebKey
	for n := range maxKeys + 1 {
		many = append(many, jwk(key, fmt.Sprint(n), "jwt-svid"))
	}
	raw, err := json.Marshal(jose.JSONWebKeySet{Keys: many})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := ParseBundle(domain, raw); err == nil || !strings.Contains(err.Error(), "257 keys") {
		t.Errorf("257 keys: %v", err)
	}
	if _, err := ParseBundle(domain, append(set(t), make([]byte, maxSetBytes)...)); err == nil || !strings.Contains(err.Error(), "bytes, more than") {
		t.Errorf("a giant set: %v", err)
	}
}

func TestSettingsAtTheirEdges(t *testing.T) {
	key := newKey(t, elliptic.P256())
	keys := NewKeys(bundle(t, domain, jwk(key, "same", "jwt-svid")))
	strict := New(Config{Leeway: -time.Second, MaxBytes: 4096, Now: func() time.Time { return at }})
	if _, err := strict.Verify(keys, forge(t, key, es, claims(t, `nbf:1800000000`)), "db"); err != nil {
		t.Errorf("valid from this second, without leeway: %v", err)
	}
	if _, err := strict.Verify(keys, forge(t, key, es, claims(t, `nbf:1800000001`)), "db"); err == nil {
		t.Error("valid from the next second, without leeway")
	}
	long := forge(t, key, es, claims(t, `x:"`+strings.Repeat("x", 4096)+`"`))
	if id := strict.Subject(long); !id.IsZero() {
		t.Errorf("a token that is too long was read: %s", id)
	}
	if n := New(Config{}).cache.limit; n != DefaultCacheSize {
		t.Errorf("%d tokens are remembered by default", n)
	}
}
