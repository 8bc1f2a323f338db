// Package workloadapi answers "who am I, whom may I believe, and what was
// taken back" by the SPIFFE Workload API, and keeps answering: it reads the
// CRL field that other clients drop, and reconnects by itself. Verifying
// peers with what it delivers is the work of sdk/chaincheck.
package workloadapi

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// Context is one whole answer of the Workload API; it replaces the one before.
type Context struct {
	// SVIDs are the identities, at least one; the first is the default.
	SVIDs []*x509svid.SVID
	// Bundles are the roots of each SVID's trust domain and of federated ones.
	Bundles *x509bundle.Set
	// CRLs are certificate revocation lists (DER), as they came; their
	// signatures are not checked here.
	CRLs [][]byte
}

// State is how the subscription stands.
type State string

// The states.
const (
	Connecting  State = "connecting"  // nothing has come yet
	Current     State = "current"     // the last Context is what the agent has
	NoIdentity  State = "no_identity" // the agent answers that this process has none
	Unavailable State = "unavailable" // no agent answers; the last Context still holds until it expires
	Malformed   State = "malformed"   // an answer made no sense and was dropped
)

// Handler is told what happens, by one goroutine, in order. Its methods delay
// what comes next and should be quick.
type Handler interface {
	// Updated gets each new Context.
	Updated(*Context)
	// StateChanged gets each new state; err says why for the last three.
	StateChanged(s State, err error)
}

// Retry delays: full jitter between minDelay and a ceiling that doubles.
const (
	minDelay     = 50 * time.Millisecond
	firstCeiling = 250 * time.Millisecond
	lastCeiling  = 10 * time.Second
)

// Watch subscribes to the Workload API at addr, "unix:///path" or
// "tcp://ip:port"; empty takes SPIFFE_ENDPOINT_SOCKET. It reconnects until ctx
// ends, and then returns ctx's error; it returns earlier only when the address
// or the request itself is wrong and trying again is no use.
func Watch(ctx context.Context, addr string, h Handler) error {
	conn, err := Dial(addr)
	if err != nil {
		return err
	}
	defer conn.Close()
	w := watcher{client: workload.NewSpiffeWorkloadAPIClient(conn), handler: h}
	return w.run(ctx)
}

type watcher struct {
	client  workload.SpiffeWorkloadAPIClient
	handler Handler
	state   State
	ceiling time.Duration
}

func (w *watcher) run(ctx context.Context) error {
	w.ceiling = firstCeiling
	w.become(Connecting, nil)
	for {
		err := w.subscribe(ctx)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		switch status.Code(err) {
		case codes.PermissionDenied:
			w.become(NoIdentity, err)
		case codes.InvalidArgument:
			// SPIFFE Workload Endpoint 6: not to be retried.
			return fmt.Errorf("workload API refused the request itself: %w", err)
		default:
			w.become(Unavailable, err)
		}
		delay := minDelay + rand.N(w.ceiling)
		w.ceiling = min(2*w.ceiling, lastCeiling)
		timer := time.NewTimer(delay)
		select {
		case <-ctx.Done():
			timer.Stop()
			return ctx.Err()
		case <-timer.C:
		}
	}
}

// subscribe reads one stream to its end.
func (w *watcher) subscribe(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := w.client.FetchX509SVID(ctx, &workload.X509SVIDRequest{})
	if err != nil {
		return err
	}
	for {
		response, err := stream.Recv()
		if err != nil {
			return err
		}
		w.ceiling = firstCeiling
		answer, err := parse(response)
		if err != nil {
			w.become(Malformed, err)
			continue
		}
		w.handler.Updated(answer)
		w.become(Current, nil)
	}
}

// become reports a state once; errors of an unchanged state stay unsaid.
func (w *watcher) become(s State, err error) {
	if w.state == s {
		return
	}
	w.state = s
	w.handler.StateChanged(s, err)
}

func parse(r *workload.X509SVIDResponse) (*Context, error) {
	if len(r.GetSvids()) == 0 {
		return nil, errors.New("the answer has no SVID")
	}
	c := &Context{Bundles: x509bundle.NewSet(), CRLs: r.GetCrl()}
	for n, item := range r.GetSvids() {
		svid, err := x509svid.ParseRaw(item.GetX509Svid(), item.GetX509SvidKey())
		if err != nil {
			return nil, fmt.Errorf("SVID %d of the answer: %w", n, err)
		}
		if svid.ID.String() != item.GetSpiffeId() {
			return nil, fmt.Errorf("SVID %d of the answer is announced as %q and names %s", n, item.GetSpiffeId(), svid.ID)
		}
		svid.Hint = item.GetHint()
		c.SVIDs = append(c.SVIDs, svid)
		bundle, err := x509bundle.ParseRaw(svid.ID.TrustDomain(), item.GetBundle())
		if err != nil {
			return nil, fmt.Errorf("bundle of SVID %d of the answer: %w", n, err)
		}
		c.Bundles.Add(bundle)
	}
	for name, der := range r.GetFederatedBundles() {
		domain, err := spiffeid.TrustDomainFromString(name)
		if err != nil {
			return nil, fmt.Errorf("federated bundle %q: %w", name, err)
		}
		// A domain's own bundle comes with its SVIDs alone.
		if c.Bundles.Has(domain) {
			return nil, fmt.Errorf("the federated bundle of %s would replace the domain's own", domain)
		}
		bundle, err := x509bundle.ParseRaw(domain, der)
		if err != nil {
			return nil, fmt.Errorf("federated bundle of %s: %w", domain, err)
		}
		c.Bundles.Add(bundle)
	}
	return c, nil
}
