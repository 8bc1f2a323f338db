package propagation

import (
	"context"
	"crypto/sha256"
	"strings"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/legation-io/legation/sdk/identity"
	"github.com/legation-io/legation/sdk/jwtcheck"
	"github.com/legation-io/legation/sdk/propagation/internal/fakeca"
)

// world is one mesh: an authority, a partner's, and a clock.
type world struct {
	t           testing.TB
	ca, partner *fakeca.CA
	now         time.Time
	keys        jwtcheck.Static
}

func newWorld(t testing.TB) *world {
	w := &world{t: t, ca: fakeca.New(t, "example.org"), partner: fakeca.New(t, "partner.example"), now: time.Unix(1_800_000_000, 0)}
	w.ca.Now, w.partner.Now = w.clock, w.clock
	w.keys = jwtcheck.Static{K: jwtcheck.NewKeys(w.ca.Bundle(t), w.partner.Bundle(t))}
	return w
}

func (w *world) clock() time.Time { return w.now }

type source struct{ *fakeca.Workload }

func (s source) Token(ctx context.Context, audience spiffeid.ID, ext map[string]string) (Token, error) {
	text, expires, err := s.Fetch(ctx, audience, ext)
	return Token{Text: text, ExpiresAt: expires, Plain: s.Plain}, err
}

func (w *world) source(name string) source {
	return source{&fakeca.Workload{CA: w.ca, ID: w.ca.ID(name)}}
}

// config is that of one workload.
func (w *world) config(name string) Config {
	return Config{
		Identity: identity.NewMemory(&identity.Snapshot{ID: w.ca.ID(name)}),
		Keys:     w.keys, Tokens: w.source(name), Now: w.clock,
	}
}

func (w *world) inbound(name string, change ...func(*Config)) *Inbound {
	w.t.Helper()
	c := w.config(name)
	for _, f := range change {
		f(&c)
	}
	in, err := NewInbound(c)
	if err != nil {
		w.t.Fatal(err)
	}
	return in
}

func (w *world) outbound(name string, change ...func(*Config)) *Outbound {
	w.t.Helper()
	c := w.config(name)
	for _, f := range change {
		f(&c)
	}
	out, err := NewOutbound(c)
	if err != nil {
		w.t.Fatal(err)
	}
	return out
}

// sign is one token as the authority signs it, linked to prev unless "".
func (w *world) sign(sub, aud spiffeid.ID, prev string, with ...map[string]any) string {
	w.t.Helper()
	ca := w.ca
	if sub.TrustDomain() == w.partner.Domain {
		ca = w.partner
	}
	claims := map[string]any{}
	if prev != "" {
		claims["ext"] = map[string]string{extPrev: link(sha256.Sum256([]byte(prev)))}
	}
	for _, m := range with {
		for k, v := range m {
			claims[k] = v
		}
	}
	token, err := ca.Sign(sub, []string{aud.String()}, claims)
	if err != nil {
		w.t.Fatal(err)
	}
	return token
}

// tokens signs an honest chain through the named workloads; the last one is
// who receives it.
func (w *world) tokens(through ...string) []string {
	var all []string
	prev := ""
	for i := range through[:len(through)-1] {
		prev = w.sign(w.ca.ID(through[i]), w.ca.ID(through[i+1]), prev)
		all = append(all, prev)
	}
	return all
}

func wire(tokens ...string) string { return scheme + strings.Join(tokens, separator) }

func from(peer spiffeid.ID, header ...string) Received {
	return Received{Peer: identity.Peer{ID: peer}, Tokens: header}
}
