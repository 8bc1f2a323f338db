package workloadapi

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"

	"github.com/legation-io/legation/sdk/chaincheck"
	"github.com/legation-io/legation/sdk/identity"
	"github.com/legation-io/legation/sdk/internal/holder"
)

// Config is what a Source or JWTSource needs. The zero value takes
// SPIFFE_ENDPOINT_SOCKET and the default identity.
type Config struct {
	// Addr of the Workload API, "unix:///path" or "tcp://ip:port"; empty takes
	// SPIFFE_ENDPOINT_SOCKET.
	Addr string
	// SPIFFEID is the identity that this process must be; zero takes the one
	// that Pick chooses. While the Workload API does not offer it, the state is
	// NoIdentity.
	SPIFFEID spiffeid.ID
	// Pick chooses when the Workload API offers several; nil takes the first,
	// which is the default (SPIFFE Workload API 5.3). Nil from Pick is none of
	// them. It is called by one goroutine with at least one.
	Pick func([]*x509svid.SVID) *x509svid.SVID
	// Backoff bounds the waits between attempts.
	Backoff Backoff
	// Logger gets each change of state once, and every answer that made no
	// sense; nil is slog.Default().
	Logger *slog.Logger
	// Registerer gets the metrics that the package comment lists; nil none.
	// Several sources need different ones (prometheus.WrapRegistererWith).
	Registerer prometheus.Registerer
	// Now is wall time; nil is time.Now.
	Now func() time.Time
}

// Backoff bounds the waits between attempts to reach the Workload API:
//
//	Min time.Duration // zero is 50 ms
//	Max time.Duration // zero is 10 s
//
// Each is a random time between Min and a ceiling that doubles, from five
// times Min up to Max, and starts again from the bottom after every answer, and
// when what is revoked changed: an identity that was given back comes at once.
type Backoff = holder.Backoff

func (c Config) withDefaults() (Config, error) {
	addr, err := Address(c.Addr)
	if err != nil {
		return c, err
	}
	c.Addr = addr
	if !c.SPIFFEID.IsZero() && c.Pick != nil {
		return c, errors.New("SPIFFEID and Pick are both set: an identity is either named or chosen")
	}
	if c.Logger == nil {
		c.Logger = slog.Default()
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	return c, nil
}

// awaitDenials is how long the first Snapshot waits for the deny set, which
// comes on another stream of the same connection.
const awaitDenials = 250 * time.Millisecond

// Source is an identity.Source that the Workload API feeds: the certificate
// that this process presents, and the roots, CRLs and denials that it judges
// peers by.
//
// What it has it keeps: while the agent is away, answers nonsense or says that
// there is no identity, the last certificate is served until it ends, and
// after that Current's error is an *identity.Ended that says since when the
// Workload API is away. Before the first answer it is an *identity.NotReady.
type Source struct {
	c       Config
	metrics prometheus.Collector
	holder  *holder.Holder
	kick    chan struct{} // something to check before the timer says so
	again   chan struct{} // the X.509 stream came back
	hurry   chan struct{} // what is revoked changed: whoever was refused may have an identity again
	life    *holder.Life
}

var _ identity.Source = (*Source)(nil)

// NewSource returns a source that has nothing until Run runs; see Open for
// both in one. The error is one of configuration.
func NewSource(c Config) (*Source, error) {
	c, err := c.withDefaults()
	if err != nil {
		return nil, err
	}
	s := &Source{c: c, kick: make(chan struct{}, 1), again: make(chan struct{}, 1), hurry: make(chan struct{}, 1), life: holder.NewLife()}
	s.holder = holder.New(holder.Params{
		Name: "the Workload API at " + c.Addr, ID: c.SPIFFEID, Pick: c.Pick, AwaitDenials: awaitDenials, Log: c.Logger, Now: c.Now,
	})
	s.metrics = collector{s}
	if c.Registerer != nil {
		if err := c.Registerer.Register(s.metrics); err != nil {
			return nil, fmt.Errorf("register the metrics of the Workload API source (one per registry; give others a prometheus.WrapRegistererWith): %w", err)
		}
	}
	return s, nil
}

// Open returns a running source that has its first identity; Close ends it.
// It waits for that until ctx ends; the error then says what was waited for.
// The source outlives ctx.
func Open(ctx context.Context, c Config) (*Source, error) {
	s, err := NewSource(c)
	if err != nil {
		return nil, err
	}
	_ = s.life.Begin() // the first
	go func() { _ = s.life.Run(context.Background(), s.run) }()
	if _, err := identity.Wait(ctx, s); err != nil {
		s.Close()
		if c.Registerer != nil {
			c.Registerer.Unregister(s.metrics)
		}
		return nil, err
	}
	return s, nil
}

// Run keeps the source current until ctx ends or Close is called, and then
// returns nil. It may be called once. An error is a Workload API that refused
// the request itself; it, too, is returned only at the end, since what is
// served holds until then.
func (s *Source) Run(ctx context.Context) error {
	if err := s.life.Begin(); err != nil {
		return err
	}
	return s.life.Run(ctx, s.run)
}

func (s *Source) run(ctx context.Context) error {
	conn, err := Dial(s.c.Addr)
	if err != nil {
		return err
	}
	defer conn.Close()
	var parts sync.WaitGroup
	defer parts.Wait()
	parts.Go(func() { s.watchRevocations(ctx, conn) })
	parts.Go(func() { s.check(ctx) })
	w := watcher{
		client: workload.NewSpiffeWorkloadAPIClient(conn), handler: sourceHandler{s}, retry: holder.Retry{Backoff: s.c.Backoff, Hurry: s.hurry},
		dropped: func(err error) { s.holder.Dropped("x509", err) },
	}
	err = w.run(ctx)
	if ctx.Err() == nil { // what has no use to try again
		s.holder.Became(Unavailable, err)
		<-ctx.Done()
		return err
	}
	return nil
}

// Close ends Run and waits for it. What was served last is served on.
func (s *Source) Close() error {
	s.life.Close()
	return nil
}

// Current implements identity.Source.
func (s *Source) Current() (*identity.Snapshot, <-chan struct{}, error) { return s.holder.Current() }

// Status says how a Source stands:
//
//	State     State         // Connecting, Current, NoIdentity, Unavailable or Malformed
//	Since     time.Time     // when State began
//	Err       error         // why; nil in Connecting and Current
//	ID        spiffeid.ID   // of the certificate that is served; zero without one
//	NotAfter  time.Time     // its end
//	Answered  time.Time     // when the last good answer came; zero before the first
//	Answers   uint64        // good ones
//	Malformed uint64        // answers, and parts of them, that were dropped
//	Denials   int           // what the deny set holds; -1 while the socket offers none
//	Clock     string        // empty, or why this machine's clock seems to be wrong
type Status = holder.Status

// Status says how the source stands, for health pages and tests.
func (s *Source) Status() Status { return s.holder.Status() }

// State is how the subscription stands, since when, and why.
func (s *Source) State() (state State, since time.Time, err error) {
	st := s.holder.Status()
	return st.State, st.Since, st.Err
}

// check ends what has ended.
func (s *Source) check(ctx context.Context) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-s.kick:
		case <-timer.C:
		}
		timer.Reset(s.holder.Check())
	}
}

// sourceHandler hands on what Watch reads.
type sourceHandler struct{ s *Source }

func (h sourceHandler) Updated(c *Context) {
	a := &holder.Answer{SVIDs: c.SVIDs, Roots: chaincheck.Roots{}, CRLs: c.CRLs}
	for _, b := range c.Bundles.Bundles() {
		a.Roots[b.TrustDomain()] = b.X509Authorities()
	}
	h.s.holder.Updated(a)
	signal(h.s.kick)
}

func (h sourceHandler) StateChanged(st State, err error) {
	h.s.holder.Became(st, err)
	if st == Current {
		signal(h.s.again)
	}
}

func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}
