package jwtcheck

import (
	"crypto/elliptic"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/jwtbundle"
)

func TestARememberedTokenIsStillJudged(t *testing.T) {
	now := at
	key, next := newKey(t, elliptic.P256()), newKey(t, elliptic.P256())
	old := NewKeys(bundle(t, domain, jwk(key, "same", "jwt-svid")))
	v := New(Config{Now: func() time.Time { return now }})
	token := forge(t, key, es, claims(t, `nbf:1799999990`))
	verify := func(keys *Keys, audience string) Cause {
		t.Helper()
		_, err := v.Verify(keys, token, audience)
		var refused *Error
		errors.As(err, &refused)
		if refused == nil {
			return ""
		}
		return refused.Cause
	}
	expect := func(what string, got, want Cause) {
		t.Helper()
		if got != want {
			t.Errorf("%s: %q, want %q", what, got, want)
		}
	}
	expect("first", verify(old, "db"), "")
	first, _ := v.Verify(old, token, "db")
	again, _ := v.Verify(old, token, "db")
	if first != again {
		t.Error("verified twice")
	}
	expect("for another audience", verify(old, "cache"), WrongAudience)
	both := NewKeys(bundle(t, domain, jwk(next, "next", "jwt-svid"), jwk(key, "same", "jwt-svid")))
	expect("with one key more", verify(both, "db"), "")
	if again, _ := v.Verify(both, token, "db"); again != first {
		t.Error("a key more made it forget the token")
	}
	expect("with nobody's keys", verify(nil, "db"), UnknownTrustDomain)
	expect("with another key of that id", verify(NewKeys(bundle(t, domain, jwk(next, "same", "jwt-svid"))), "db"), BadSignature)
	expect("with the old keys again", verify(old, "db"), "")
	expect("after its key was removed", verify(NewKeys(bundle(t, domain, jwk(next, "next", "jwt-svid"))), "db"), UnknownKey)
	expect("and back", verify(old, "db"), "")
	now = at.Add(-2 * time.Minute)
	expect("when the clock went back", verify(old, "db"), NotYetValid)
	now = at.Add(300 * time.Second)
	expect("at its end", verify(old, "db"), Expired)
	if n := v.cache.len(); n != 0 {
		t.Errorf("%d expired tokens are remembered", n)
	}
}

func TestTheCacheIsBoundedAndKeepsWhatIsUsed(t *testing.T) {
	v, keys, key := standard(t)
	v.cache.limit = 16
	hot := forge(t, key, es, claims(t))
	first, err := v.Verify(keys, hot, "db")
	if err != nil {
		t.Fatal(err)
	}
	for i := range 100 {
		if _, err := v.Verify(keys, forge(t, key, es, claims(t, fmt.Sprintf("n:%d", i))), "db"); err != nil {
			t.Fatal(err)
		}
		if again, _ := v.Verify(keys, hot, "db"); again != first {
			t.Fatalf("forgotten after %d others", i)
		}
		if n := v.cache.len(); n > 16 {
			t.Fatalf("%d tokens are remembered", n)
		}
	}
	n := v.cache.len()
	giant := forge(t, key, es, claims(t, `x:"`+strings.Repeat("x", maxCachedClaims)+`"`))
	if _, err := v.Verify(keys, giant, "db"); err != nil || v.cache.len() != n {
		t.Errorf("a giant token is remembered, %v", err)
	}
	off := New(Config{CacheSize: -1, Now: func() time.Time { return at }})
	if _, err := off.Verify(keys, hot, "db"); err != nil || off.cache.len() != 0 {
		t.Errorf("%d tokens are remembered, %v", off.cache.len(), err)
	}
}

func TestManyVerifyAtOnceWhileKeysChange(t *testing.T) {
	v, keys, key := standard(t)
	v.cache.limit = 4
	other := NewKeys(bundle(t, domain, jwk(key, "same", "jwt-svid"), jwk(newKey(t, elliptic.P256()), "n", "jwt-svid")))
	var tokens []string
	for i := range 8 {
		tokens = append(tokens, forge(t, key, es, claims(t, fmt.Sprintf("n:%d", i))))
	}
	var all sync.WaitGroup
	for g := range 4 {
		all.Go(func() {
			for i := range 200 {
				k := keys
				if (i+g)%2 == 0 {
					k = other
				}
				if _, err := v.Verify(k, tokens[i%len(tokens)], "db"); err != nil {
					t.Error(err)
				}
			}
		})
	}
	all.Wait()
}

func TestClaimsAreTheCallersOwn(t *testing.T) {
	v, keys, key := standard(t)
	token, err := v.Verify(keys, forge(t, key, es, claims(t, `ext:{"team":"a"}`)), "db")
	if err != nil {
		t.Fatal(err)
	}
	token.Claims()["ext"].(map[string]any)["team"] = "b"
	if ext, _ := token.Claim("ext"); ext.(map[string]any)["team"] != "a" {
		t.Error("a caller changed a shared token")
	}
}

func TestKeysOfGoSpiffe(t *testing.T) {
	v, _, key := standard(t)
	b := jwtbundle.New(domain)
	if err := b.AddJWTAuthority("same", key.Public()); err != nil {
		t.Fatal(err)
	}
	if err := b.AddJWTAuthority("text", "no key"); err != nil {
		t.Fatal(err)
	}
	from := FromBundle(b)
	if from.Len() != 1 {
		t.Errorf("%d keys", from.Len())
	}
	keys, err := Static{NewKeys(from)}.Keys()
	if err != nil {
		t.Fatal(err)
	}
	token := forge(t, key, es, claims(t))
	if _, err := v.Verify(keys, token, "db"); err != nil {
		t.Error(err)
	}
	if v.Subject(token).String() != "spiffe://example.org/web" || !v.Subject("x").IsZero() || !v.Subject(forge(t, key, es, "{}")).IsZero() {
		t.Error("Subject")
	}
}

func TestSetsThatAreNone(t *testing.T) {
	for name, raw := range map[string]string{"no JSON": "{", "an array": "[]", "keys that are text": `{"keys":"x"}`} {
		if b, err := ParseBundle(domain, []byte(raw)); err == nil {
			t.Errorf("%s: %v", name, b)
		}
	}
	if b, err := ParseBundle(domain, nil); err != nil || b.Len() != 0 {
		t.Error(b, err)
	}
	if _, err := ParseBundle(domain, make([]byte, maxSetBytes+1)); err == nil {
		t.Error("a set of more than a megabyte")
	}
}
