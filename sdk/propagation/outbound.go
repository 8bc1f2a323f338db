package propagation

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"regexp"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// Token is a signed JWT-SVID of ours.
type Token struct {
	// Text is JWS compact serialisation.
	Text      string
	ExpiresAt time.Time
	// Plain says that the authority cannot sign further claims, so that this
	// token has none: SPIRE's Workload API.
	Plain bool
}

// A TokenSource signs JWT-SVIDs of ours.
type TokenSource interface {
	// Token returns a token for one audience with further claims, or a Plain
	// one. It need not remember tokens.
	Token(ctx context.Context, audience spiffeid.ID, ext map[string]string) (Token, error)
}

const (
	defaultTokenTimeout = 5 * time.Second
	defaultMaxTokens    = 4096
	// retryAfter is how long an old token is used before the next attempt,
	// when signing failed.
	retryAfter = 5 * time.Second
)

// Outbound adds identity to calls. It is what Transport and grpcpropagation
// are made of, for further protocols.
type Outbound struct {
	config  Config
	metrics *metrics
	unlink  sync.Once   // says that the chain cannot be continued
	plain   atomic.Bool // the last token that came was Plain

	mu         sync.Mutex // guards what follows
	young, old map[callKey]*call
}

// callKey is whose, for whom and on whose behalf.
type callKey struct {
	self     spiffeid.ID
	audience spiffeid.ID
	prev     string
}

var extName = regexp.MustCompile(`^[a-z0-9_.-]{1,64}$`)

// NewOutbound checks a configuration as Transport does, except for Audience,
// which it does not use.
func NewOutbound(c Config) (*Outbound, error) {
	if err := c.common(); err != nil {
		return nil, err
	}
	if c.Tokens == nil {
		return nil, errors.New("propagation.Config: Tokens is not set: nobody signs our tokens; use sdk/propagation/tokens")
	}
	if c.Identity == nil {
		return nil, errors.New("propagation.Config: Identity is not set; use sdk/workloadapi's Source, or identity.NewMemory")
	}
	size := 0
	for name, value := range c.Ext {
		if size += len(value); !extName.MatchString(name) || strings.HasPrefix(name, reservedExt) {
			return nil, fmt.Errorf("propagation.Config: Ext: %q is no name for a claim: [a-z0-9_.-], 1 to 64 characters, not %s…", name, reservedExt)
		}
	}
	if len(c.Ext) > 15 || size > 4000 {
		return nil, fmt.Errorf("propagation.Config: Ext: %d claims of %d bytes; at most 15 of 4,000 together", len(c.Ext), size)
	}
	c.Ext = maps.Clone(c.Ext)
	if c.TokenTimeout <= 0 {
		c.TokenTimeout = defaultTokenTimeout
	}
	if c.MaxTokens <= 0 {
		c.MaxTokens = defaultMaxTokens
	}
	m, err := newMetrics(c.Registerer)
	if err != nil {
		return nil, fmt.Errorf("propagation.Config: Registerer: %w", err)
	}
	return &Outbound{config: c, metrics: m}, nil
}

// Header returns what a call to one workload carries in x-workload-identity:
// the chain of ctx and our own token, or our own alone where ctx has none.
// Errors: an *Error with Expired or NoChainSpace when the chain cannot be
// passed on, NotReady when no token can be had.
func (o *Outbound) Header(ctx context.Context, audience spiffeid.ID) (string, error) {
	incoming, now := FromContext(ctx).c, o.config.Now()
	key := callKey{self: o.self(), audience: audience}
	if incoming != nil && len(incoming.tokens) > 0 {
		for i, t := range incoming.tokens {
			if !now.Before(t.ExpiresAt) {
				return "", &Error{Cause: Expired, Hop: i + 1, Of: len(incoming.tokens), ID: t.ID,
					Err: fmt.Errorf("it expired at %s and cannot be passed on to %s; call with propagation.Detached(ctx) to act on one's own account", t.ExpiresAt.UTC().Format(time.RFC3339), audience)}
			}
		}
		if n := len(incoming.tokens) + 1; n > o.config.MaxDepth {
			return "", refuse(NoChainSpace, "the call to %s would be hop %d, more than %d; do services call each other in a circle?", audience, n, o.config.MaxDepth)
		}
		key.prev = link(incoming.tokens[len(incoming.tokens)-1].Sum)
	}
	linked := key.prev != ""
	if o.plain.Load() {
		key.prev = "" // it would be left out: one token serves all chains
	}
	token, err := o.token(ctx, key, now)
	if err != nil {
		return "", err
	}
	header := scheme + token.Text
	if linked {
		if token.Plain || key.prev == "" {
			o.metrics.token("unlinked")
			o.unlink.Do(func() {
				o.config.Logger.Warn("the Workload API here signs plain JWT-SVIDs only: the callers of our callers are not passed on, every chain begins at this service")
			})
		} else {
			header = scheme + incoming.wire + separator + token.Text
		}
	}
	if len(header) > o.config.MaxBytes {
		return "", refuse(NoChainSpace, "with our token the chain has %d bytes, more than %d", len(header), o.config.MaxBytes)
	}
	return header, nil
}

// self is who we are; zero while that is not known.
func (o *Outbound) self() spiffeid.ID {
	if s, _, err := o.config.Identity.Current(); err == nil && s != nil {
		return s.ID
	}
	return spiffeid.ID{}
}

// Baggage returns what a call carries in baggage: the program's own values,
// with the members of ours set for calls within the mesh; "" is none.
func (o *Outbound) Baggage(ctx context.Context, values []string, inside bool) string {
	if !inside {
		return baggageOut(values, spiffeid.ID{}, spiffeid.ID{})
	}
	self := o.self()
	origin := self
	if c := FromContext(ctx); !c.IsZero() && len(c.c.tokens) > 0 {
		origin = c.Origin()
	}
	return baggageOut(values, origin, self)
}

// call is the token for one key, and the asking for it.
type call struct {
	mu      sync.Mutex // guards what follows
	token   Token
	renewAt time.Time
	asking  chan struct{} // closed when the asking is over; nil when nobody asks
	err     error         // of the last asking
}

// token returns a token that holds, asking for it by one goroutine at a time:
// the others use the old one while it holds.
func (o *Outbound) token(ctx context.Context, key callKey, now time.Time) (Token, error) {
	c := o.find(key)
	for {
		c.mu.Lock()
		holds := c.token.Text != "" && now.Before(c.token.ExpiresAt)
		if holds && (now.Before(c.renewAt) || c.asking != nil) {
			t := c.token
			c.mu.Unlock()
			o.metrics.cached.Inc()
			return t, nil
		}
		if asking := c.asking; asking != nil {
			c.mu.Unlock()
			select {
			case <-asking:
			case <-ctx.Done():
				return Token{}, refuse(NotReady, "waiting for a token for %s: %w", key.audience, context.Cause(ctx))
			}
			c.mu.Lock()
			t, err := c.token, c.err
			c.mu.Unlock()
			if err != nil {
				return Token{}, err
			}
			if t.Text != "" && o.config.Now().Before(t.ExpiresAt) {
				return t, nil
			}
			continue // it was the asking of another time
		}
		c.asking = make(chan struct{})
		c.mu.Unlock()
		return o.ask(ctx, key, c)
	}
}

var errAskedInVain = errors.New("whoever signs our tokens panicked")

// ask gets a token. The end of ctx does not end it: others wait for it.
func (o *Outbound) ask(ctx context.Context, key callKey, c *call) (Token, error) {
	ask, cancel := context.WithTimeout(context.WithoutCancel(ctx), o.config.TokenTimeout)
	defer cancel()
	ext := o.config.Ext
	if key.prev != "" {
		if ext = maps.Clone(ext); ext == nil {
			ext = map[string]string{}
		}
		ext[extPrev] = key.prev
	}
	t, err := Token{}, errAskedInVain
	defer func() { // also when Tokens panics: others wait
		c.mu.Lock()
		defer c.mu.Unlock()
		if err == errAskedInVain {
			c.err = refuse(NotReady, "no token for %s: %w", key.audience, err)
		}
		close(c.asking)
		c.asking = nil
	}()
	t, err = o.config.Tokens.Token(ask, key.audience, ext)
	now := o.config.Now()
	if err == nil && (t.Text == "" || strings.ContainsAny(t.Text, separator+" ,\r\n") || !now.Before(t.ExpiresAt)) {
		err = errors.New("what came is no token that holds now; check the clock")
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case err == nil:
		o.metrics.token("signed")
		o.plain.Store(t.Plain)
		c.token, c.renewAt, c.err = t, now.Add(t.ExpiresAt.Sub(now)/2), nil
		return t, nil
	case c.token.Text != "" && now.Before(c.token.ExpiresAt):
		o.metrics.token("stale")
		c.renewAt, c.err = now.Add(retryAfter), nil
		return c.token, nil
	}
	o.metrics.token("failed")
	c.err = refuse(NotReady, "no token for %s: %w", key.audience, err)
	return Token{}, c.err
}

// find returns the call of a key. What was not used since the map was half as
// full as it may be is forgotten.
func (o *Outbound) find(key callKey) *call {
	o.mu.Lock()
	defer o.mu.Unlock()
	if c := o.young[key]; c != nil {
		return c
	}
	c := o.old[key]
	if c == nil {
		c = &call{}
	}
	if len(o.young) >= max(1, o.config.MaxTokens/2) {
		o.old, o.young = o.young, nil
	}
	if o.young == nil {
		o.young = map[callKey]*call{}
	}
	delete(o.old, key)
	o.young[key] = c
	return c
}
