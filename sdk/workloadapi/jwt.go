package workloadapi

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"sync"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/jwtbundle"
	"github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/jwtsvid"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/legation-io/legation/sdk/identity"
	"github.com/legation-io/legation/sdk/internal/holder"
	"github.com/legation-io/legation/sdk/jwtcheck"
)

// JWTSource keeps the keys current with which JWT-SVIDs are verified, and
// fetches JWT-SVIDs. It is a jwtcheck.Source, and of go-spiffe's kinds a
// jwtbundle.Source and a jwtsvid source.
//
// Keys that were there stay while the Workload API is away: a token's own
// lifetime bounds what that means.
type JWTSource struct {
	c      Config
	client *Client
	life   *holder.Life
	raw    map[string][]byte // of bundles; Run's

	mu      sync.Mutex // guards what follows
	bundles *jwtbundle.Set
	keys    *jwtcheck.Keys
	changed chan struct{}
	err     error // why there are no keys
	state   State
	since   time.Time
	why     error // of state
}

var (
	_ jwtcheck.Source  = (*JWTSource)(nil)
	_ jwtbundle.Source = (*JWTSource)(nil)
)

// NewJWTSource returns a source that has no keys until Run runs; see
// OpenJWTSource for both in one. Of Config, Pick and Registerer are not used;
// SPIFFEID is whose tokens FetchJWTSVID fetches by default.
func NewJWTSource(c Config) (*JWTSource, error) {
	c, err := c.withDefaults()
	if err != nil {
		return nil, err
	}
	client, err := NewClient(c.Addr)
	if err != nil {
		return nil, err
	}
	s := &JWTSource{c: c, client: client, life: holder.NewLife(), changed: make(chan struct{}), state: Connecting, since: c.Now()}
	s.err = &identity.NotReady{Source: s.name()}
	return s, nil
}

// OpenJWTSource returns a running source that has its first keys; Close ends
// it. It waits for them until ctx ends; the source outlives ctx.
func OpenJWTSource(ctx context.Context, c Config) (*JWTSource, error) {
	s, err := NewJWTSource(c)
	if err != nil {
		return nil, err
	}
	_ = s.life.Begin() // the first
	go func() { _ = s.life.Run(context.Background(), s.run) }()
	for { // as identity.Wait
		ended := context.Cause(ctx)
		_, changed, err := s.Bundles()
		if err == nil {
			return s, nil
		}
		if ended != nil {
			s.Close()
			return nil, fmt.Errorf("%w: %w", ended, err)
		}
		select {
		case <-changed:
		case <-ctx.Done():
		}
	}
}

func (s *JWTSource) name() string { return "the Workload API at " + s.c.Addr }

// Run keeps the keys current until ctx ends or Close is called, and then
// returns nil. It may be called once.
func (s *JWTSource) Run(ctx context.Context) error {
	if err := s.life.Begin(); err != nil {
		return err
	}
	return s.life.Run(ctx, s.run)
}

// Close ends Run, waits for it, and ends fetching. Keys that came are served
// on.
func (s *JWTSource) Close() error {
	s.life.Close()
	return s.client.Close()
}

func (s *JWTSource) run(ctx context.Context) error {
	again := holder.Retry{Backoff: s.c.Backoff}
	for {
		err := s.read(ctx, &again)
		if ctx.Err() != nil {
			return nil
		}
		switch status.Code(err) {
		case codes.PermissionDenied:
			s.become(NoIdentity, err)
		case codes.InvalidArgument: // SPIFFE Workload Endpoint 6: not to be retried
			s.become(Unavailable, err)
			<-ctx.Done()
			return fmt.Errorf("workload API refused the request itself: %w", err)
		default:
			s.become(Unavailable, err)
		}
		if again.Wait(ctx) != nil {
			return nil
		}
	}
}

func (s *JWTSource) read(ctx context.Context, again *holder.Retry) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := s.client.api.FetchJWTBundles(ctx, &workload.JWTBundlesRequest{})
	if err != nil {
		return err
	}
	for {
		r, err := stream.Recv()
		if err != nil {
			return err
		}
		again.Reset()
		if err := s.take(r.GetBundles()); err != nil {
			s.c.Logger.Error("the Workload API sent what makes no sense; the last good answer stays", "workload_api", s.c.Addr, "what", "jwt bundles", "error", err)
			s.become(Malformed, err)
			continue
		}
		s.become(Current, nil)
	}
}

// take replaces the keys, or keeps them all. It is called by one goroutine.
func (s *JWTSource) take(raw map[string][]byte) error {
	if s.raw != nil && maps.EqualFunc(raw, s.raw, bytes.Equal) {
		return nil
	}
	set, keys, err := parseJWTBundles(raw)
	if err != nil {
		return err
	}
	s.raw = raw
	s.mu.Lock()
	defer s.mu.Unlock()
	s.bundles, s.keys, s.err = set, keys, nil
	close(s.changed)
	s.changed = make(chan struct{})
	return nil
}

func parseJWTBundles(raw map[string][]byte) (*jwtbundle.Set, *jwtcheck.Keys, error) {
	if len(raw) == 0 {
		return nil, nil, errors.New("the answer has no bundle")
	}
	set := jwtbundle.NewSet()
	bundles := make([]*jwtcheck.Bundle, 0, len(raw))
	for name, jwks := range raw {
		domain, err := spiffeid.TrustDomainFromString(name)
		if err != nil {
			return nil, nil, fmt.Errorf("JWT bundle %.300q: %w", name, err)
		}
		if set.Has(domain) {
			return nil, nil, fmt.Errorf("the answer has two JWT bundles of %s", domain)
		}
		bundle, err := jwtbundle.Parse(domain, jwks)
		if err != nil {
			return nil, nil, fmt.Errorf("JWT bundle of %s: %w", domain, err)
		}
		set.Add(bundle)
		checked, err := jwtcheck.ParseWorkloadAPI(domain, jwks)
		if err != nil {
			return nil, nil, fmt.Errorf("JWT bundle of %s: %w", domain, err)
		}
		bundles = append(bundles, checked)
	}
	return set, jwtcheck.NewKeys(bundles...), nil
}

// become says a change of state once. It is called by one goroutine.
func (s *JWTSource) become(st State, err error) {
	s.mu.Lock()
	was, bundles := s.state, s.bundles
	s.why = err
	if was != st {
		s.state, s.since = st, s.c.Now()
		if st != Current && bundles == nil {
			s.err = &identity.NotReady{Source: s.name(), Err: err}
			close(s.changed)
			s.changed = make(chan struct{})
		}
	}
	s.mu.Unlock()
	switch {
	case was == st:
	case st == Current:
		s.c.Logger.Info("the Workload API has the JWT keys", "workload_api", s.c.Addr, "trust_domains", bundles.Len(), "was", was)
	default:
		s.c.Logger.Warn("the Workload API has no JWT keys for us; those that came before hold", "workload_api", s.c.Addr, "state", st, "error", err)
	}
}

// State is how the subscription stands, since when, and why.
func (s *JWTSource) State() (state State, since time.Time, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.state, s.since, s.why
}

// Keys implements jwtcheck.Source.
func (s *JWTSource) Keys() (*jwtcheck.Keys, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.keys, s.err
}

// Bundles is the keys as go-spiffe has them, not to be changed, and a channel
// that is closed when there are others. The error is an *identity.NotReady.
func (s *JWTSource) Bundles() (*jwtbundle.Set, <-chan struct{}, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.bundles, s.changed, s.err
}

// GetJWTBundleForTrustDomain implements jwtbundle.Source.
func (s *JWTSource) GetJWTBundleForTrustDomain(domain spiffeid.TrustDomain) (*jwtbundle.Bundle, error) {
	set, _, err := s.Bundles()
	if err != nil {
		return nil, err
	}
	return set.GetJWTBundleForTrustDomain(domain)
}

// FetchJWTSVID fetches a JWT-SVID of params.Subject, or of the configured
// identity. See Client.FetchJWTSVID.
func (s *JWTSource) FetchJWTSVID(ctx context.Context, params jwtsvid.Params) (*jwtsvid.SVID, error) {
	if params.Subject.IsZero() {
		params.Subject = s.c.SPIFFEID
	}
	return s.client.FetchJWTSVID(ctx, params)
}

// Client asks the same Workload API; it is closed by Close.
func (s *JWTSource) Client() *Client { return s.client }
