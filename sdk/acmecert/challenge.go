package acmecert

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"sync"
	"time"

	"github.com/caddyserver/certmagic"
	"github.com/mholt/acmez/v3"
	"github.com/mholt/acmez/v3/acme"
)

// challenges are those that wait for the CA: made here, or by a replica that
// shares the Storage.
type challenges struct {
	storage Storage
	domains map[string]bool // who is answered for at all
	now     func() time.Time

	mu      sync.Mutex
	own     map[string]*presented // by kind and domain
	lookups map[string]*lookup
}

// presented is one challenge as it is stored for the replicas.
type presented struct {
	Token            string    `json:"token"`
	KeyAuthorization string    `json:"keyAuthorization"`
	Until            time.Time `json:"until"`

	certificate *tls.Certificate // TLS-ALPN-01
}

// lookup is one question to the Storage that all who come before it is asked
// share, so that strangers cannot make more than some a second.
type lookup struct {
	done  chan struct{}
	found *presented
	err   error
}

const (
	lookupEvery   = 100 * time.Millisecond
	lookupTimeout = 5 * time.Second
	challengeLife = time.Hour
)

var errNoChallenge = errors.New("no challenge waits for this name")

func newChallenges(c *Config, s Storage) *challenges {
	domains := map[string]bool{}
	for _, d := range c.Domains {
		domains[d] = true
	}
	return &challenges{storage: s, domains: domains, now: c.Now, own: map[string]*presented{}, lookups: map[string]*lookup{}}
}

func challengeKey(kind Challenge, domain string) string {
	return "challenges/" + string(kind) + "/" + certmagic.StorageKeys.Safe(domain)
}

// solver answers one kind of challenge; it implements acmez.Solver.
type solver struct {
	kind Challenge
	all  *challenges
}

// Present implements acmez.Solver.
func (s solver) Present(ctx context.Context, c acme.Challenge) error {
	if !token(c.Token) { // RFC 8555 8.3
		return fmt.Errorf("the CA's challenge token %q is not base64url and refused", clean(c.Token))
	}
	domain := strings.ToLower(c.Identifier.Value)
	if !s.all.domains[domain] {
		return fmt.Errorf("the CA wants a proof for %q, which was not asked for", clean(domain))
	}
	if authorization, _, ok := strings.Cut(c.KeyAuthorization, "."); !ok || authorization != c.Token {
		return errors.New("the key authorization does not begin with the token (RFC 8555 8.1)")
	}
	p := &presented{Token: c.Token, KeyAuthorization: c.KeyAuthorization, Until: s.all.now().Add(challengeLife)}
	if s.kind == TLSALPN01 {
		certificate, err := acmez.TLSALPN01ChallengeCert(c)
		if err != nil {
			return err
		}
		p.certificate = certificate
	}
	key := challengeKey(s.kind, domain)
	s.all.mu.Lock()
	s.all.own[key] = p
	s.all.mu.Unlock()
	value, err := json.Marshal(p)
	if err != nil {
		return err
	}
	if err := s.all.storage.Store(ctx, key, value); err != nil {
		return fmt.Errorf("show the challenge to the replicas: %w", err)
	}
	return nil
}

// CleanUp implements acmez.Solver.
func (s solver) CleanUp(ctx context.Context, c acme.Challenge) error {
	key := challengeKey(s.kind, strings.ToLower(c.Identifier.Value))
	s.all.mu.Lock()
	delete(s.all.own, key)
	s.all.mu.Unlock()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), lookupTimeout)
	defer cancel()
	return s.all.storage.Delete(ctx, key)
}

// find returns the challenge that waits for a domain.
func (c *challenges) find(ctx context.Context, kind Challenge, domain string) (*presented, error) {
	if !c.domains[domain] {
		return nil, errNoChallenge
	}
	key := challengeKey(kind, domain)
	c.mu.Lock()
	if p := c.own[key]; p != nil {
		c.mu.Unlock()
		return p, nil
	}
	l := c.lookups[key]
	if l == nil {
		l = &lookup{done: make(chan struct{})}
		c.lookups[key] = l
		c.mu.Unlock()
		c.lookUp(ctx, kind, domain, l)
	} else {
		c.mu.Unlock()
	}
	select {
	case <-l.done:
		return l.found, l.err
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// lookUp asks the Storage, once for all who come before it does.
func (c *challenges) lookUp(ctx context.Context, kind Challenge, domain string, l *lookup) {
	key := challengeKey(kind, domain)
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), lookupTimeout)
	defer cancel()
	timer := time.NewTimer(lookupEvery)
	<-timer.C
	c.mu.Lock()
	delete(c.lookups, key) // who comes from now on asks again
	c.mu.Unlock()
	defer close(l.done)
	value, err := c.storage.Load(ctx, key)
	if errors.Is(err, fs.ErrNotExist) {
		l.err = errNoChallenge
		return
	}
	if err != nil {
		l.err = err
		return
	}
	l.found, l.err = c.shared(kind, domain, value)
}

// shared reads a replica's challenge.
func (c *challenges) shared(kind Challenge, domain string, value []byte) (*presented, error) {
	p := &presented{}
	if err := json.Unmarshal(value, p); err != nil {
		return nil, fmt.Errorf("a stored challenge cannot be read: %w", err)
	}
	if first, _, ok := strings.Cut(p.KeyAuthorization, "."); !token(p.Token) || !ok || first != p.Token || !c.now().Before(p.Until) {
		return nil, errNoChallenge
	}
	if kind == TLSALPN01 {
		certificate, err := acmez.TLSALPN01ChallengeCert(acme.Challenge{
			Identifier: acme.Identifier{Type: "dns", Value: domain}, Token: p.Token, KeyAuthorization: p.KeyAuthorization,
		})
		if err != nil {
			return nil, err
		}
		p.certificate = certificate
	}
	return p, nil
}

// dnsSolver is certmagic's over a libdns provider. What a name server answers
// may end an order, never the program.
type dnsSolver struct{ solver certmagic.DNS01Solver }

func newDNSSolver(d *DNS, c *Config) *dnsSolver {
	timeout := d.PropagationTimeout
	if timeout < 0 {
		timeout = -1
	}
	return &dnsSolver{certmagic.DNS01Solver{DNSManager: certmagic.DNSManager{
		DNSProvider: d.Provider, Resolvers: d.Resolvers, PropagationTimeout: timeout, OverrideDomain: d.OverrideDomain, Logger: bridged(c.Logger),
	}}}
}

func survive(what string, f func() error) (err error) {
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("%s: the DNS provider or an answer of a name server made it fail: %s", what, clean(fmt.Sprint(r)))
		}
	}()
	return f()
}

// Present implements acmez.Solver.
func (d *dnsSolver) Present(ctx context.Context, c acme.Challenge) error {
	if !token(c.Token) {
		return fmt.Errorf("the CA's challenge token %q is not base64url and refused", clean(c.Token))
	}
	return survive("make the TXT record", func() error { return d.solver.Present(ctx, c) })
}

// Wait implements acmez.Waiter.
func (d *dnsSolver) Wait(ctx context.Context, c acme.Challenge) error {
	return survive("wait for the TXT record", func() error { return d.solver.Wait(ctx, c) })
}

// CleanUp implements acmez.Solver.
func (d *dnsSolver) CleanUp(ctx context.Context, c acme.Challenge) error {
	return survive("remove the TXT record", func() error { return d.solver.CleanUp(ctx, c) })
}
