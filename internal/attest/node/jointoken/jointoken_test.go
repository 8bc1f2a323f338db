package jointoken

import (
	"bytes"
	"context"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/legation-io/legation/internal/attest/node"
	"github.com/legation-io/legation/internal/attest/node/registry"
	"github.com/legation-io/legation/internal/clock"
	"github.com/legation-io/legation/internal/fault"
	"github.com/legation-io/legation/internal/store"
	"github.com/legation-io/legation/internal/store/memory"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

var td = spiffeid.RequireTrustDomainFromString("example.org")

type fixture struct {
	store    *memory.Store
	clock    *clock.Skewed
	tokens   *Tokens
	registry *registry.Registry
}

func newFixture(t *testing.T) *fixture {
	t.Helper()
	f := &fixture{store: memory.New(), clock: &clock.Skewed{}}
	t.Cleanup(func() { f.store.Close() })
	f.tokens, f.registry = f.replica()
	return f
}

// replica is another control plane over the same store.
func (f *fixture) replica() (*Tokens, *registry.Registry) {
	return New(Params{Store: f.store, TrustDomain: td, Clock: f.clock, Outstanding: 5}),
		registry.New(registry.Params{Store: f.store, TrustDomain: td, Clock: f.clock})
}

func (f *fixture) create(t *testing.T, name string) string {
	t.Helper()
	token, expires, err := f.tokens.Create(t.Context(), Request{Node: name, Actor: "alice"})
	if err != nil {
		t.Fatal(err)
	}
	if d := expires.Sub(f.clock.Now()); d < 9*time.Minute || d > 10*time.Minute {
		t.Fatalf("expires in %s; want 10m by default", d)
	}
	return token
}

func attest(ctx context.Context, tokens *Tokens, nodes *registry.Registry, token string) error {
	claim, err := tokens.Attest(ctx, node.Attempt{Payload: []byte(token)})
	if err != nil {
		return err
	}
	_, err = nodes.Admit(ctx, tokens.Method(), claim)
	return err
}

func TestTokenAdmitsItsNodeOnce(t *testing.T) {
	f := newFixture(t)
	token := f.create(t, "web-1.example.com")
	if err := attest(t.Context(), f.tokens, f.registry, token); err != nil {
		t.Fatal(err)
	}
	rec, err := f.registry.Get(t.Context(), "web-1.example.com")
	if err != nil || rec.SPIFFEID != "spiffe://example.org/legation/agent/web-1.example.com" || rec.Method != node.JoinToken {
		t.Fatalf("record %+v, %v", rec, err)
	}
	err = attest(t.Context(), f.tokens, f.registry, token)
	if !fault.Is(err, fault.Denied) || !strings.Contains(err.Error(), "was used at") {
		t.Fatalf("a second use: %v", err)
	}
}

// A05: 200 concurrent attestations with one token over three replicas.
func TestA05OneTokenOneWinner(t *testing.T) {
	f := newFixture(t)
	token := f.create(t, "web-1")
	var won, other atomic.Int32
	var wg sync.WaitGroup
	start := make(chan struct{})
	for range 3 {
		tokens, nodes := f.replica()
		for range 67 {
			wg.Go(func() {
				<-start
				switch err := attest(t.Context(), tokens, nodes, token); {
				case err == nil:
					won.Add(1)
				case !fault.Is(err, fault.Denied) && !fault.Is(err, fault.Conflict):
					other.Add(1)
					t.Errorf("a loser reads %v", err)
				}
			})
		}
	}
	close(start)
	wg.Wait()
	if won.Load() != 1 {
		t.Fatalf("%d attestations won; want exactly 1", won.Load())
	}
}

func TestA05CrashBetweenJudgingAndRecordingLeavesBothOrNeither(t *testing.T) {
	f := newFixture(t)
	token := f.create(t, "web-1")
	f.store.FailCommits(func(store.Txn) error { return fmt.Errorf("killed") })
	if err := attest(t.Context(), f.tokens, f.registry, token); err == nil {
		t.Fatal("attested although nothing could be written")
	}
	f.store.FailCommits(nil)
	if _, err := f.registry.Get(t.Context(), "web-1"); !fault.Is(err, fault.NotFound) {
		t.Fatalf("the node is recorded: %v", err)
	}
	if err := attest(t.Context(), f.tokens, f.registry, token); err != nil {
		t.Fatalf("the token is spent although no node was recorded: %v", err)
	}
}

func TestA05RestoredBackupVoidsUnspentTokens(t *testing.T) {
	f := newFixture(t)
	token := f.create(t, "web-1")
	if n, err := f.tokens.VoidAll(t.Context(), "a backup was restored"); n != 1 || err != nil {
		t.Fatalf("%d, %v", n, err)
	}
	if err := attest(t.Context(), f.tokens, f.registry, token); !fault.Is(err, fault.Denied) {
		t.Fatalf("%v", err)
	}
}

func TestRefusedTokens(t *testing.T) {
	f := newFixture(t)
	token := f.create(t, "web-1")
	parts := strings.Split(token, ".")
	last := token[len(token)-1:]
	flipped := "a"
	if last == "a" {
		flipped = "b"
	}
	for name, bad := range map[string]string{
		"nothing":                             "",
		"no dots":                             "secret",
		"one dot":                             "a.b",
		"another node's name on a good token": "web-2." + parts[1] + "." + parts[2],
		"another id":                          parts[0] + ".aaaaaaaaaaaaa." + parts[2],
		"the last character changed":          token[:len(token)-1] + flipped,
		"a prefix of the secret":              token[:len(token)-1],
		"a longer secret":                     token + "a",
		"upper case":                          strings.ToUpper(token),
		"a trailing newline":                  token + "\n",
		"the create lock":                     "web-1.create-lock." + parts[2],
		"a megabyte of dots":                  strings.Repeat(".", 1<<20),
	} {
		t.Run(name, func(t *testing.T) {
			err := attest(t.Context(), f.tokens, f.registry, bad)
			if !fault.Is(err, fault.Denied) {
				t.Fatalf("%v; want denied", err)
			}
			if strings.Contains(err.Error(), parts[2]) {
				t.Fatalf("the refusal repeats the secret: %v", err)
			}
		})
	}
	if err := attest(t.Context(), f.tokens, f.registry, token); err != nil {
		t.Fatalf("the real token after the bad ones: %v", err)
	}
}

func TestExpiredTokenIsRefused(t *testing.T) {
	f := newFixture(t)
	token := f.create(t, "web-1")
	f.clock.Jump(10*time.Minute + time.Second)
	err := attest(t.Context(), f.tokens, f.registry, token)
	if !fault.Is(err, fault.Denied) || !strings.Contains(err.Error(), "expired") {
		t.Fatalf("%v", err)
	}
}

// A64: hashes at rest, at least 128 bits of entropy, no secret in the store.
func TestA64TokensAreHashedAtRest(t *testing.T) {
	f := newFixture(t)
	seen := map[string]bool{}
	for i := range 5 {
		token := f.create(t, fmt.Sprintf("web-%d", i))
		secret := token[strings.LastIndexByte(token, '.')+1:]
		raw, err := encoding.DecodeString(secret)
		if err != nil || len(raw) != 32 || seen[secret] {
			t.Fatalf("secret of %d bytes, repeated %v: %v", len(raw), seen[secret], err)
		}
		seen[secret] = true
		kvs, _, err := f.store.List(t.Context(), store.Prefix)
		if err != nil {
			t.Fatal(err)
		}
		for _, kv := range kvs {
			if bytes.Contains(kv.Value, []byte(secret)) || bytes.Contains(kv.Value, raw) || strings.Contains(kv.Key, secret) {
				t.Fatalf("the secret lies in the store under %s", kv.Key)
			}
		}
	}
}

func TestOutstandingTokensAreLimitedPerCallerExactly(t *testing.T) {
	f := newFixture(t)
	var made, limited atomic.Int32
	var wg sync.WaitGroup
	for i := range 20 {
		wg.Go(func() {
			_, _, err := f.tokens.Create(t.Context(), Request{Node: fmt.Sprintf("web-%d", i), Actor: "alice"})
			switch {
			case err == nil:
				made.Add(1)
			case fault.Is(err, fault.Limited):
				limited.Add(1)
			default:
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if made.Load() != 5 || limited.Load() != 15 {
		t.Fatalf("%d made, %d limited; want 5 and 15", made.Load(), limited.Load())
	}
	if _, _, err := f.tokens.Create(t.Context(), Request{Node: "web-1", Actor: "bob"}); err != nil {
		t.Fatalf("another caller is limited too: %v", err)
	}
	f.clock.Jump(48 * time.Hour)
	if _, _, err := f.tokens.Create(t.Context(), Request{Node: "web-1", Actor: "alice"}); err != nil {
		t.Fatalf("after all expired: %v", err)
	}
	kvs, _, err := f.store.List(t.Context(), f.tokens.prefix())
	if err != nil || len(kvs) != 2 {
		t.Fatalf("%d values; want the lock and one token, the rest swept (%v)", len(kvs), err)
	}
}

func TestCreateRefuses(t *testing.T) {
	f := newFixture(t)
	for name, req := range map[string]Request{
		"a node name with a slash": {Node: "a/b"},
		"no node name":             {},
		"a negative lifetime":      {Node: "a", TTL: -time.Second},
		"a lifetime of a month":    {Node: "a", TTL: 30 * 24 * time.Hour},
	} {
		if _, _, err := f.tokens.Create(t.Context(), req); !fault.Is(err, fault.Invalid) {
			t.Errorf("%s: %v; want invalid", name, err)
		}
	}
}

func FuzzAttest(f *testing.F) {
	st := memory.New()
	defer st.Close()
	tokens := New(Params{Store: st, TrustDomain: td})
	token, _, err := tokens.Create(context.Background(), Request{Node: "web-1"})
	if err != nil {
		f.Fatal(err)
	}
	f.Add([]byte(token[:len(token)-1]))
	f.Add([]byte("a.b.c"))
	f.Add([]byte("...."))
	f.Fuzz(func(t *testing.T, payload []byte) {
		if string(payload) == token {
			return
		}
		if _, err := tokens.Attest(context.Background(), node.Attempt{Payload: payload}); !fault.Is(err, fault.Denied) {
			t.Fatalf("%q: %v; want denied", payload, err)
		}
	})
}
