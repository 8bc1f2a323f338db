// Package upstream is the agent's link to the control plane: one mTLS
// connection to one replica, with the node's own identity kept renewed, the
// trust and config streams applied, reports delivered and signing requests
// passed on. What it learned survives restarts, so that an agent serves while
// no replica answers.
package upstream

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"sync"
	"sync/atomic"
	"time"

	nodev1 "github.com/legation-io/legation/api/node/v1"
	attestnode "github.com/legation-io/legation/internal/attest/node"
	"github.com/legation-io/legation/internal/clock"
	"github.com/legation-io/legation/internal/fault"
	"github.com/legation-io/legation/internal/latest"
	"github.com/legation-io/legation/internal/limit"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"golang.org/x/sync/errgroup"
)

// Protocol is the version this agent speaks.
const Protocol = 1

// Cache keeps bytes over restarts, sealed. Names are "identity", "view" and "config".
type Cache interface {
	// Read returns fault.NotFound when nothing of that name is kept.
	Read(name string) ([]byte, error)
	Write(name string, plain []byte) error
}

// Params is what a Link needs. Optional fields may be nil or zero.
type Params struct {
	// Servers are the replicas, HOST:PORT; any of them will do.
	Servers     []string
	TrustDomain spiffeid.TrustDomain
	// Roots pin the control plane at the first start, or
	Roots []*x509.Certificate
	// BundleHash does: "sha256:<hex>" over the concatenated DER of the roots.
	BundleHash string
	// Prover attests the node; nil when only a cached identity is used.
	Prover attestnode.Prover
	// DNSNames the node's certificate is to carry (attestnode.CheckLocalNames).
	DNSNames []string
	// Dial connects; nil is TCP.
	Dial  func(ctx context.Context, address string) (net.Conn, error)
	Cache Cache // nil keeps nothing
	// OnConfig takes a change to a watched subject. An error refuses it and
	// keeps what was. Calls for one Link do not overlap.
	OnConfig func(subject string, update ConfigUpdate) error
	// Snapshot tells everything that has been reported and still holds; it is
	// sent whole whenever the link comes up again.
	Snapshot   func() *nodev1.ReportRequest
	Clock      clock.Clock
	Log        *slog.Logger
	Registerer prometheus.Registerer
	// Version of this program, for Hello.
	Version string
}

// Link is the link to the control plane. It implements Signer and Views.
type Link struct {
	p       Params
	metrics *metrics

	view     latest.Value[*View]
	identity latest.Value[*Identity]
	refusal  atomic.Pointer[refusal] // of the identity, by the replica tried last
	session  latest.Value[*session]  // nil while disconnected
	configs  *configs
	reports  *reports

	mu    sync.Mutex // guards trust, and writing view
	trust *trustState

	unsave       chan struct{} // one token: trust changed since it was saved
	unsaveConfig chan struct{} // the same of configs.kept

	pinned pin
	// lastSigned is the last issuer and root whose signature was checked.
	lastSigned atomic.Pointer[signedBy]
	sessions   sync.WaitGroup // connections that drain
}

// New returns a Link; Run makes it live.
func New(p Params) *Link {
	if p.Clock == nil {
		p.Clock = clock.System
	}
	if p.Log == nil {
		p.Log = slog.New(slog.DiscardHandler)
	}
	if p.Dial == nil {
		p.Dial = func(ctx context.Context, address string) (net.Conn, error) {
			return (&net.Dialer{Timeout: dialTimeout}).DialContext(ctx, "tcp", address)
		}
	}
	l := &Link{p: p, metrics: newMetrics(p.Registerer), configs: newConfigs(), trust: newTrustState(),
		unsave: make(chan struct{}, 1), unsaveConfig: make(chan struct{}, 1)}
	l.reports = newReports(l.metrics)
	l.view.Store(&View{TrustDomain: p.TrustDomain.Name(), Since: p.Clock.Now()})
	return l
}

// View returns the latest View and a channel closed when it is replaced.
func (l *Link) View() (*View, <-chan struct{}) { return l.view.Load() }

// Identity returns the node's own identity, nil before attestation, and a
// channel closed when it is replaced.
func (l *Link) Identity() (*Identity, <-chan struct{}) { return l.identity.Load() }

// errRollover ends a session because the next should begin at once.
var errRollover = errors.New("the node's certificate was renewed")

// Run keeps the link up until ctx ends. It returns earlier only when it can
// never come up: without a pin (fault.Invalid), or when the first attestation
// is refused.
func (l *Link) Run(ctx context.Context) error {
	if err := l.prepare(); err != nil {
		return err
	}
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return l.save(ctx) })
	g.Go(func() error { return l.serveOffline(ctx) })
	g.Go(func() error { return l.connectLoop(ctx) })
	err := g.Wait()
	l.sessions.Wait()
	l.flush()
	return err
}

// prepare reads the cache and checks that the control plane can be told from
// an impostor.
func (l *Link) prepare() error {
	if len(l.p.Servers) == 0 {
		return fault.New(fault.Invalid, "no server is configured; name at least one HOST:PORT of the control plane")
	}
	if len(l.p.Roots) == 0 && l.p.BundleHash == "" {
		return fault.New(fault.Invalid, "neither a bundle nor its hash is pinned, so the control plane could not be told from an impostor; set bundleFile or bundleHash (legation token create prints it)")
	}
	if l.p.BundleHash != "" {
		if _, err := parseHash(l.p.BundleHash); err != nil {
			return err
		}
	}
	l.loadIdentity()
	l.load()
	if id := l.identity.Get(); id == nil && l.p.Prover == nil {
		return fault.New(fault.Invalid, "this node has no identity and nothing to attest with; make a join token: legation token create --node NAME")
	}
	return nil
}

const (
	backoffMin = 200 * time.Millisecond
	backoffMax = 5 * time.Second
	// settled is how long a link must have been up for the next failure to
	// count as the first.
	settled = 10 * time.Second
)

func (l *Link) connectLoop(ctx context.Context) error {
	servers := append([]string(nil), l.p.Servers...)
	rand.Shuffle(len(servers), func(i, j int) { servers[i], servers[j] = servers[j], servers[i] })
	failures := 0
	for at := 0; ctx.Err() == nil; {
		started := time.Now()
		connected, err := l.connect(ctx, servers[at%len(servers)])
		if ctx.Err() != nil {
			break
		}
		if errors.Is(err, errRollover) {
			failures = 0
			continue
		}
		if fatal(err) && !l.view.Get().Synced {
			return err
		}
		l.down(servers[at%len(servers)], err)
		if connected && time.Since(started) > settled {
			failures = 0
		}
		failures++
		at++ // the next replica
		if err := l.wait(ctx, l.backoff(failures, len(servers), err)); err != nil {
			break
		}
	}
	l.down("", ctx.Err())
	return ctx.Err()
}

// backoff is full jitter over an exponential bound; the other replicas are
// tried once without much delay.
func (l *Link) backoff(failures, servers int, err error) time.Duration {
	round := (failures - 1) / servers
	bound := min(backoffMax, backoffMin<<min(round, 10))
	d := rand.N(bound) + 10*time.Millisecond
	if asked, ok := limit.RetryAfter(err); ok {
		d = max(d, min(asked, backoffMax)+rand.N(bound))
	}
	return d
}

func (l *Link) wait(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-timer.C:
		return nil
	}
}

// errAttest marks a refused attestation: more tries with the same proof are
// in vain.
type errAttest struct{ err error }

func (e *errAttest) Error() string { return e.err.Error() }
func (e *errAttest) Unwrap() error { return e.err }

func fatal(err error) bool {
	var refused *errAttest
	return errors.As(err, &refused) && (fault.Is(err, fault.Denied) || fault.Is(err, fault.Invalid))
}

// down publishes why the link is down.
func (l *Link) down(server string, err error) {
	why := "stopped"
	if server != "" && err != nil {
		why = fmt.Sprintf("%s: %s", server, plain(err))
	}
	l.session.Store(nil)
	l.metrics.connected.Set(0)
	l.mu.Lock()
	defer l.mu.Unlock()
	v := *l.view.Get()
	if v.Connected {
		v.Connected, v.Since = false, l.p.Clock.Now()
	}
	if v.LastError != why {
		l.p.Log.Warn("no link to the control plane", "reason", why)
	}
	v.LastError = why
	l.view.Store(&v)
}

// up publishes that the link is up.
func (l *Link) up(s *session) {
	l.session.Store(s)
	l.metrics.connected.Set(1)
	l.metrics.connects.Inc()
	l.mu.Lock()
	defer l.mu.Unlock()
	v := *l.view.Get()
	if !v.Connected {
		v.Connected, v.Since = true, l.p.Clock.Now()
	}
	v.LastError = ""
	l.view.Store(&v)
	l.p.Log.Info("linked to the control plane", "server", s.server, "serial", s.serial)
}
