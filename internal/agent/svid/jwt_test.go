package svid

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	nodev1 "github.com/legation-io/legation/api/node/v1"
	"github.com/legation-io/legation/internal/agent/upstream"
	"github.com/legation-io/legation/internal/fault"
)

func revoking(serial string) func(*upstream.View) {
	return func(v *upstream.View) {
		v.Revocations["r1"] = &nodev1.Revocation{Id: "r1", Serials: []string{serial}}
	}
}

func TestJWT(t *testing.T) {
	inBubble(t, func(w *world) {
		m := w.run(Params{})
		e := entry("web", "unix:uid:1")
		w.declare(e)
		get := func(audience ...string) (string, error) {
			token, expires, err := m.JWT(context.Background(), e, "uid/1", audience, nil)
			if err == nil && !time.Now().Before(expires) {
				t.Error("an expired token was handed out")
			}
			return token, err
		}
		must := func(audience ...string) string {
			t.Helper()
			token, err := get(audience...)
			if err != nil {
				t.Fatal(err)
			}
			return token
		}
		first := must("a", "b")
		if must("b", "a", "b") != first {
			t.Error("the order of audiences makes another token")
		}
		if must("a") == first || must("a\x00b") == first {
			t.Error("another audience got the same token")
		}
		time.Sleep(2 * time.Minute)
		if must("a", "b") != first {
			t.Error("not cached")
		}
		time.Sleep(time.Minute)
		second := must("a", "b")
		if second == first {
			t.Error("the same token after half of its life")
		}
		w.set(func() { w.down = true })
		time.Sleep(4 * time.Minute)
		if must("a", "b") != second {
			t.Error("not served while the control plane is away")
		}
		time.Sleep(2 * time.Minute)
		if _, err := get("a", "b"); !fault.Is(err, fault.Unavailable) {
			t.Errorf("after its end: %v", err)
		}
		w.set(func() { w.down = false })
		must("a", "b")
		for _, audience := range [][]string{nil, {}, {""}, {"a", ""}} {
			if _, err := get(audience...); !fault.Is(err, fault.Invalid) {
				t.Errorf("audience %q: %v", audience, err)
			}
		}
		blocked := entry("web", "unix:uid:1")
		blocked.Blocked = true
		w.declare(blocked)
		if _, err := get("a", "b"); !fault.Is(err, fault.Denied) {
			t.Errorf("of a blocked identity: %v", err)
		}
		w.change(func(v *upstream.View) { delete(v.Entries, e.Name) })
		if _, err := get("a", "b"); !fault.Is(err, fault.Denied) {
			t.Errorf("of a removed entry: %v", err)
		}
	})
}

func TestFurtherClaimsMakeAnotherToken(t *testing.T) {
	inBubble(t, func(w *world) {
		m := w.run(Params{})
		e := entry("web", "unix:uid:1")
		w.declare(e)
		get := func(ext map[string]string) string {
			t.Helper()
			token, _, err := m.JWT(context.Background(), e, "uid/1", []string{"a"}, ext)
			if err != nil {
				t.Fatal(err)
			}
			return token
		}
		plain := get(nil)
		one := get(map[string]string{"a": "1", "b": "2"})
		if one == plain || get(map[string]string{"a": "1"}) == one || get(map[string]string{"a": "1\" \"b\":\"2"}) == one {
			t.Error("other claims got the same token")
		}
		if get(map[string]string{"b": "2", "a": "1"}) != one || get(map[string]string{}) != plain {
			t.Error("not cached")
		}
		w.set(func() { w.old = true })
		if _, _, err := m.JWT(context.Background(), e, "uid/1", []string{"b"}, map[string]string{"a": "1"}); !errors.Is(err, ErrPlain) {
			t.Errorf("from a control plane that does not know further claims: %v", err)
		}
		if get(nil) != plain || get(map[string]string{"b": "2", "a": "1"}) != one {
			t.Error("what was signed before is gone")
		}
	})
}

func TestTheTokensUsedLastAreKept(t *testing.T) {
	inBubble(t, func(w *world) {
		m := w.run(Params{})
		m.jwtRate = nil // limits nothing
		e := entry("web", "unix:uid:1")
		w.declare(e)
		get := func(audience string) string {
			t.Helper()
			token, _, err := m.JWT(context.Background(), e, "uid/1", []string{audience}, nil)
			if err != nil {
				t.Fatal(err)
			}
			return token
		}
		first := get("hot")
		for i := range 2 * maxJWTs {
			get(time.Duration(i).String())
			if get("hot") != first {
				t.Fatalf("forgotten after %d others", i+1)
			}
		}
		if len(m.jwts.tokens) != m.jwts.used.Len() {
			t.Errorf("%d tokens, %d in the order of use", len(m.jwts.tokens), m.jwts.used.Len())
		}
	})
}

func TestTheNumberOfTokensIsBounded(t *testing.T) {
	inBubble(t, func(w *world) {
		m := w.run(Params{})
		m.jwtRate = nil // limits nothing
		e := entry("web", "unix:uid:1")
		w.declare(e)
		for i := range 3 * maxJWTs {
			if _, _, err := m.JWT(context.Background(), e, "uid/1", []string{time.Duration(i).String()}, nil); err != nil {
				t.Fatal(err)
			}
		}
		if n := len(m.jwts.tokens); n > maxJWTs {
			t.Errorf("%d tokens are held", n)
		}
	})
}

// One program that asks for ever other tokens takes no other's: neither those
// that are held for them, nor what the node may have signed.
func TestOneEntryCannotTakeTheTokensOfAnother(t *testing.T) {
	inBubble(t, func(w *world) {
		m := w.run(Params{})
		web, greedy := entry("web", "unix:uid:1"), entry("greedy", "unix:uid:2")
		w.declare(web, greedy)
		get := func(e *nodev1.Entry, audience string, ext map[string]string) (string, error) {
			token, _, err := m.JWT(context.Background(), e, "uid/1", []string{audience}, ext)
			return token, err
		}
		first, err := get(web, "a", nil)
		if err != nil {
			t.Fatal(err)
		}
		signed, limited := 0, 0
		for i := range 5000 {
			switch _, err := get(greedy, "a", map[string]string{"user": fmt.Sprint(i)}); {
			case err == nil:
				signed++
			case fault.Is(err, fault.Limited):
				limited++
			default:
				t.Fatal(err)
			}
			if i%100 == 0 {
				time.Sleep(500 * time.Millisecond)
			}
		}
		if signed < jwtsAtOnce || signed > jwtsAtOnce+26*jwtsPerSecond || limited == 0 {
			t.Errorf("%d signed, %d limited", signed, limited)
		}
		if n := m.jwts.held["default/greedy"]; n > maxEntryJWTs {
			t.Errorf("%d tokens of one entry are held", n)
		}
		if again, err := get(web, "a", nil); err != nil || again != first {
			t.Error("the other entry's token was pushed out", err)
		}
		if _, err := get(web, "b", nil); err != nil {
			t.Error("the other entry is limited too:", err)
		}
	})
}
