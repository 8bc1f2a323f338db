// Package workloadapi answers "who am I, and whom do I believe" from the
// SPIFFE Workload API, and keeps answering: it reads the CRL field that other
// clients drop, joins what the agent tells to be revoked beyond that
// (legation.workload.v1.Revocations; a socket without it, such as SPIRE's, is
// served quietly), and reconnects by itself. Verifying peers with what it
// delivers is the work of sdk/chaincheck, which sdk/mtls calls.
//
//   - Open, or NewSource with Run, keep an identity.Source current: what a
//     server or client needs. Watch hands on whole answers instead.
//   - OpenJWTSource does the same for the keys of JWT-SVIDs.
//   - Client asks once: FetchJWTSVID, FetchX509Context, ValidateJWTSVID.
//   - Dial is the connection under all of these, with the security header,
//     for the further services of legation.workload.v1.
//
// # When the Workload API is away
//
// Nothing blocks and nothing spins: attempts are spread by Backoff. What came
// last is served until the certificate ends; from then on Current's error, an
// *identity.Ended, says since when the Workload API is away. State, the
// metrics and one log line for each change say how it stands. PermissionDenied
// is treated the same: an agent that has just started may not know its entries
// yet, and whoever was revoked is refused by its peers. An answer that makes no
// sense leaves the last one in place. When the clock contradicts a certificate
// that has just come (by a day, say), the certificate is served, with a
// warning, for as long as it was made to live.
//
// # Private keys
//
// A key comes over the socket, is parsed, and its bytes are wiped: those of the
// message, and those of gRPC's receive buffers of 1 KiB and more. Smaller
// frames, and what package crypto made of the key, lie on the heap, which the
// runtime neither locks nor wipes: secretmem.Harden keeps the process as a
// whole from being dumped, traced and swapped. sdk/light reads keys through
// locked memory of its own.
//
// # Metrics of a Source
//
//	legation_workloadapi_state{state}                          1 for the current state
//	legation_workloadapi_answers_total                         good answers
//	legation_workloadapi_malformed_total                       answers or parts of them that were dropped
//	legation_workloadapi_certificate_expiry_timestamp_seconds  end of the certificate that is presented
//	legation_workloadapi_answered_timestamp_seconds            when the last good answer came
//	legation_workloadapi_denials                               size of the deny set, -1 without one
//	legation_workloadapi_clock_wrong                           1 while the clock contradicts the certificate
//
// Standards: SPIFFE Workload API 4, 5 and 6, SPIFFE Workload Endpoint 3, 4 and 6.
package workloadapi

import (
	"context"
	"errors"
	"fmt"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/legation-io/legation/sdk/internal/holder"
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
type State = holder.State

// The states.
const (
	Connecting  = holder.Connecting  // nothing has come yet
	Current     = holder.Current     // the last Context is what the agent has
	NoIdentity  = holder.NoIdentity  // the agent answers that this process has none, or not the one that is wanted
	Unavailable = holder.Unavailable // no agent answers; the last Context still holds until it expires
	Malformed   = holder.Malformed   // an answer made no sense and was dropped
)

// Handler is told what happens, by one goroutine, in order. Its methods delay
// what comes next and should be quick.
type Handler interface {
	// Updated gets each new Context.
	Updated(*Context)
	// StateChanged gets each new state; err says why for the last three.
	StateChanged(s State, err error)
}

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
	w := watcher{client: workload.NewSpiffeWorkloadAPIClient(conn), handler: h, dropped: func(error) {}}
	return w.run(ctx)
}

type watcher struct {
	client  workload.SpiffeWorkloadAPIClient
	handler Handler
	dropped func(error) // every answer that made no sense
	state   State
	retry   holder.Retry
}

func (w *watcher) run(ctx context.Context) error {
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
		if err := w.retry.Wait(ctx); err != nil {
			return err
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
		w.retry.Reset()
		answer, err := parse(response)
		if err != nil {
			w.dropped(err)
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
	defer func() {
		for _, item := range r.GetSvids() {
			clear(item.GetX509SvidKey())
		}
	}()
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
