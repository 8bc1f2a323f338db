package propagation

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

func header(t testing.TB, o *Outbound, ctx context.Context, to spiffeid.ID) string {
	t.Helper()
	h, err := o.Header(ctx, to)
	if err != nil {
		t.Fatal(err)
	}
	return h
}

func TestATokenServesManyCallsAndIsRenewedAtHalfItsLife(t *testing.T) {
	w := newWorld(t)
	s := w.source("shop")
	o := w.outbound("shop", func(c *Config) { c.Tokens = s })
	ctx, orders := context.Background(), w.ca.ID("orders")
	first := header(t, o, ctx, orders)
	if header(t, o, ctx, orders) != first || s.Asked() != 1 {
		t.Errorf("asked %d times", s.Asked())
	}
	if header(t, o, ctx, w.ca.ID("stock")) == first || s.Asked() != 2 {
		t.Error("one token for two audiences")
	}
	w.now = w.now.Add(151 * time.Second)
	second := header(t, o, ctx, orders)
	if second == first || s.Asked() != 3 {
		t.Errorf("not renewed after half its life; asked %d times", s.Asked())
	}
	s.SetDown(true)
	w.now = w.now.Add(200 * time.Second)
	again := header(t, o, ctx, orders)
	if again != second || header(t, o, ctx, orders) != second || s.Asked() != 4 {
		t.Errorf("the old token is not used while the authority is away; asked %d times", s.Asked())
	}
	w.now = w.now.Add(100 * time.Second)
	if h, err := o.Header(ctx, orders); err == nil {
		t.Errorf("an expired token is sent: %s", h)
	}
	s.SetDown(false)
	if header(t, o, ctx, orders) == second {
		t.Error("an expired token is sent")
	}
}

func TestEachChainHasItsOwnLink(t *testing.T) {
	w := newWorld(t)
	in, o := w.inbound("orders"), w.outbound("orders")
	var contexts []context.Context
	for _, caller := range []string{"shop", "admin"} {
		c, err := in.Accept(from(w.ca.ID(caller), wire(w.tokens(caller, "orders")...)))
		if err != nil {
			t.Fatal(err)
		}
		contexts = append(contexts, NewContext(context.Background(), c))
	}
	contexts = append(contexts, Detached(contexts[0]))
	stock := w.inbound("stock")
	for i, want := range []string{"spiffe://example.org/shop > spiffe://example.org/orders", "spiffe://example.org/admin > spiffe://example.org/orders", "spiffe://example.org/orders"} {
		c, err := stock.Accept(from(w.ca.ID("orders"), header(t, o, contexts[i], w.ca.ID("stock"))))
		if err != nil || c.String() != want {
			t.Errorf("%v, %v; want %s", c, err, want)
		}
	}
}

func TestAnAuthorityThatSignsPlainTokensBeginsTheChainAnewAndSaysSo(t *testing.T) {
	w := newWorld(t)
	s := w.source("orders")
	s.Plain = true
	var log bytes.Buffer
	o := w.outbound("orders", func(c *Config) { c.Tokens, c.Logger = s, slog.New(slog.NewTextHandler(&log, nil)) })
	stock := w.inbound("stock")
	for _, caller := range []string{"shop", "admin"} {
		c, err := w.inbound("orders").Accept(from(w.ca.ID(caller), wire(w.tokens(caller, "orders")...)))
		if err != nil {
			t.Fatal(err)
		}
		h := header(t, o, NewContext(context.Background(), c), w.ca.ID("stock"))
		if got, err := stock.Accept(from(w.ca.ID("orders"), h)); err != nil || got.String() != "spiffe://example.org/orders" {
			t.Errorf("%v, %v", got, err)
		}
	}
	if strings.Count(log.String(), "every chain begins at this service") != 1 {
		t.Errorf("said: %s", &log)
	}
	if s.Asked() != 2 { // the first told that they are plain; one more serves all chains
		t.Errorf("asked %d times", s.Asked())
	}
}

func TestManyCallsAskOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		release := make(chan struct{})
		s := &slow{source: w.source("shop"), release: release}
		o := w.outbound("shop", func(c *Config) { c.Tokens = s })
		var all sync.WaitGroup
		for range 16 {
			all.Go(func() {
				if _, err := o.Header(context.Background(), w.ca.ID("orders")); err != nil {
					t.Error(err)
				}
			})
		}
		synctest.Wait() // one asks, the others wait for it
		ctx, cancel := context.WithCancel(context.Background())
		gaveUp := make(chan error, 1)
		go func() {
			_, err := o.Header(ctx, w.ca.ID("orders"))
			gaveUp <- err
		}()
		synctest.Wait()
		cancel()
		if err := <-gaveUp; !errors.Is(err, context.Canceled) {
			t.Errorf("who gave up got %v", err)
		}
		close(release)
		all.Wait()
		if s.Asked() != 1 {
			t.Errorf("asked %d times", s.Asked())
		}
	})
}

type slow struct {
	source
	release chan struct{}
}

func (s *slow) Token(ctx context.Context, audience spiffeid.ID, ext map[string]string) (Token, error) {
	select {
	case <-s.release:
	case <-ctx.Done():
		return Token{}, ctx.Err()
	}
	return s.source.Token(ctx, audience, ext)
}

func TestTokensHeldAreBounded(t *testing.T) {
	w := newWorld(t)
	o := w.outbound("shop", func(c *Config) { c.MaxTokens = 8 })
	for i := range 100 {
		header(t, o, context.Background(), w.ca.ID(fmt.Sprint("s", i)))
		if n := len(o.young) + len(o.old); n > 8 {
			t.Fatalf("%d tokens are held", n)
		}
	}
}

func TestWhatIsNoTokenIsNotSent(t *testing.T) {
	w := newWorld(t)
	for name, token := range map[string]Token{
		"nothing":     {},
		"expired":     {Text: "a.b.c", ExpiresAt: w.now},
		"two of them": {Text: "a.b.c~d.e.f", ExpiresAt: w.now.Add(time.Hour)},
		"a header":    {Text: "a.b.c\r\nx: y", ExpiresAt: w.now.Add(time.Hour)},
	} {
		o := w.outbound("shop", func(c *Config) { c.Tokens = fixed(token) })
		if h, err := o.Header(context.Background(), w.ca.ID("orders")); err == nil {
			t.Errorf("%s: %q", name, h)
		}
	}
}

type fixed Token

func (f fixed) Token(context.Context, spiffeid.ID, map[string]string) (Token, error) {
	return Token(f), nil
}

func TestTheLinkIsTheHashOfTheTokenBefore(t *testing.T) {
	if got := link(sha256.Sum256([]byte("a.b.c"))); len(got) != 43 || strings.ContainsAny(got, "=+/") {
		t.Error(got)
	}
}
