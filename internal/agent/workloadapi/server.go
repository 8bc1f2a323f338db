// Package workloadapi is the SPIFFE Workload API: a process that connects to
// the agent's Unix socket is attested and gets its SVIDs, bundles and CRLs,
// pushed anew whenever they change (SPIFFE_Workload_API.md,
// SPIFFE_Workload_Endpoint.md). It translates; package svid decides.
package workloadapi

import (
	"context"
	"errors"
	"log/slog"
	"path"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	nodev1 "github.com/legation-io/legation/api/node/v1"
	"github.com/legation-io/legation/internal/agent/svid"
	"github.com/legation-io/legation/internal/agent/upstream"
	"github.com/legation-io/legation/internal/attest/workload"
	"github.com/legation-io/legation/internal/clock"
	"github.com/legation-io/legation/internal/fault"
	"github.com/legation-io/legation/internal/limit"
	workloadv1 "github.com/legation-io/legation/sdk/api/workload/v1"
	"github.com/legation-io/legation/sdk/jwtcheck"
	"github.com/prometheus/client_golang/prometheus"
	pb "github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"golang.org/x/time/rate"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

// Params is what a Server needs. Manager, Views and TrustDomain are required.
type Params struct {
	Manager     *svid.Manager
	Views       upstream.Views
	TrustDomain spiffeid.TrustDomain
	// Attestor made the credentials of the gRPC server that this is
	// registered with (workload.NewCredentials).
	Attestor *workload.Attestor
	// Objects keeps what programs share with their replicas; nil refuses.
	Objects Objects
	Clock   clock.Clock // nil is the machine's
	Limits  Limits
	// Instance says whose keys a caller gets; nil is one set for each uid.
	Instance func(*workload.Caller) svid.Instance
	// OnDelivered is told after each push which CRL number of each authority
	// a subscriber was handed, and the SPIFFE ID it acts as ("" for one that
	// asked for bundles only); OnGone that it went away. Both may be nil and
	// must not block.
	OnDelivered func(subscriber, spiffeID string, crl map[string]uint64)
	OnGone      func(subscriber string)
	Log         *slog.Logger
	Registerer  prometheus.Registerer
}

// Limits bound the calls that are open at once; more get ResourceExhausted.
type Limits struct {
	PerUID     int // 0 is 1024
	PerProcess int // 0 is 64
}

// Server implements the SpiffeWorkloadAPI service and those of
// legation.workload.v1, each in a file of its own.
type Server struct {
	pb.UnimplementedSpiffeWorkloadAPIServer
	p       Params
	log     *slog.Logger
	logRate *rate.Limiter // refusals are logged no faster
	open    openCalls
	next    atomic.Uint64 // subscriber numbers
	keys    atomic.Pointer[keySet]
	tokens  *jwtcheck.Verifier

	objectRate, objectBytes *limit.Buckets // by entry
	policyBytes             policyBytes

	setMu sync.Mutex // guards what follows
	setOf map[string]*nodev1.Revocation
	set   *workloadv1.RevocationSet // of setOf

	requests *prometheus.CounterVec
	streams  prometheus.Gauge
	first    prometheus.Histogram
}

// New starts nothing.
func New(p Params) *Server {
	if p.Clock == nil {
		p.Clock = clock.System
	}
	if p.Limits.PerUID <= 0 {
		p.Limits.PerUID = 1024
	}
	if p.Limits.PerProcess <= 0 {
		p.Limits.PerProcess = 64
	}
	if p.Instance == nil {
		p.Instance = func(c *workload.Caller) svid.Instance {
			return svid.Instance("uid/" + strconv.FormatUint(uint64(c.UID()), 10))
		}
	}
	if p.OnDelivered == nil {
		p.OnDelivered = func(string, string, map[string]uint64) {}
	}
	if p.OnGone == nil {
		p.OnGone = func(string) {}
	}
	if p.Log == nil {
		p.Log = slog.New(slog.DiscardHandler)
	}
	s := &Server{
		p: p, log: p.Log, logRate: rate.NewLimiter(10, 20),
		objectRate: limit.NewBuckets(objectCalls, 0), objectBytes: limit.NewBuckets(objectBytes, 0),
		tokens:   jwtcheck.New(jwtcheck.Config{Now: p.Clock.Now, CacheSize: 1024}), // programs that ask here hold none of their own
		open:     openCalls{limits: p.Limits, byUID: map[uint32]int{}, byPID: map[int32]int{}},
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "legation_workload_api_requests_total", Help: "Workload API calls that ended, by method and gRPC code."}, []string{"method", "code"}),
		streams:  prometheus.NewGauge(prometheus.GaugeOpts{Name: "legation_workload_api_open_calls", Help: "Workload API calls that are open."}),
		first:    prometheus.NewHistogram(prometheus.HistogramOpts{Name: "legation_workload_api_first_svid_seconds", Help: "From a FetchX509SVID call to its first answer.", Buckets: prometheus.ExponentialBuckets(0.0001, 2, 16)}),
	}
	if p.Registerer != nil {
		p.Registerer.MustRegister(s.requests, s.streams, s.first)
	}
	return s
}

// Register adds the services to a gRPC server whose credentials are
// workload.NewCredentials. A service of legation.workload.v1 is a type that
// holds the Server: each call begins with enter and ends with leave and
// answer.
func (s *Server) Register(r grpc.ServiceRegistrar) {
	pb.RegisterSpiffeWorkloadAPIServer(r, s)
	workloadv1.RegisterRevocationsServer(r, revocations{s: s})
	workloadv1.RegisterTokensServer(r, tokens{s: s})
	workloadv1.RegisterPoliciesServer(r, policies{s: s})
	workloadv1.RegisterObjectsServer(r, objects{s: s})
}

// call is one RPC of an attested process.
type call struct {
	s         *Server
	ctx       context.Context // ends with the RPC or the process
	cancel    context.CancelFunc
	caller    *workload.Caller
	selectors []workload.Selector
	name      string // of the subscriber
}

// enter checks the security header, attests the caller and counts it. What it
// returns must be left.
func (s *Server) enter(ctx context.Context) (*call, error) {
	// SPIFFE_Workload_Endpoint.md 3: without this header, set by no browser
	// and no confused proxy, the request is refused.
	if md, _ := metadata.FromIncomingContext(ctx); !slices.Equal(md.Get("workload.spiffe.io"), []string{"true"}) {
		return nil, fault.New(fault.Invalid, "security header missing from request: send the metadata workload.spiffe.io: true")
	}
	caller, ok := workload.FromContext(ctx)
	if !ok {
		return nil, fault.New(fault.Denied, "the caller cannot be attested: the Workload API is served on the agent's Unix socket only")
	}
	if err := s.open.add(caller); err != nil {
		return nil, err
	}
	s.streams.Inc()
	c := &call{s: s, caller: caller, name: "workload-api/" + strconv.FormatUint(s.next.Add(1), 10)}
	c.ctx, c.cancel = context.WithCancel(ctx)
	var err error
	if c.selectors, err = caller.Selectors(ctx); err != nil {
		c.leave()
		return nil, err
	}
	return c, nil
}

func (c *call) leave() {
	c.cancel()
	c.s.streams.Dec()
	c.s.open.remove(c.caller)
}

// bind ends the call with the process: a copy of the socket in another
// process's hands is served no longer. It returns what to defer.
func (c *call) bind() (stop func()) {
	ended := make(chan struct{})
	done := c.caller.Done()
	go func() {
		defer close(ended)
		select {
		case <-done:
			c.cancel()
		case <-c.ctx.Done():
		}
	}()
	return func() {
		c.cancel()
		<-ended
	}
}

// same makes sure, before anything is handed over, that the process is still
// what was attested. One that executed another program is attested anew; if
// it has a right to the same entries the stream goes on.
func (c *call) same() error {
	err := c.caller.Recheck()
	if err == nil || !c.caller.Alive() {
		return err
	}
	selectors, again := c.caller.Selectors(c.ctx)
	if again != nil {
		return again
	}
	if !slices.Equal(c.s.p.Manager.Match(selectors), c.s.p.Manager.Match(c.selectors)) {
		return err
	}
	c.selectors = selectors
	return nil
}

// answer maps an error to gRPC, counts it, and logs a refusal once.
func (s *Server) answer(ctx context.Context, method string, err error) error {
	// The RPC's own end, as opposed to the process's, is nobody's refusal.
	if ctx.Err() != nil && (errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded)) {
		err = ctx.Err()
	}
	mapped := fault.GRPC(err)
	s.requests.WithLabelValues(name(method), status.Code(mapped).String()).Inc()
	if err != nil && ctx.Err() == nil && s.logRate.Allow() {
		pid, uid := int32(0), uint32(0)
		if c, ok := workload.FromContext(ctx); ok {
			pid, uid = c.PID(), c.UID()
		}
		level := slog.LevelInfo
		if status.Code(mapped) == codes.NotFound { // an answer, not a refusal: a program asks for what may not be there
			level = slog.LevelDebug
		}
		s.log.Log(ctx, level, "a Workload API call was refused", "method", name(method), "pid", pid, "uid", uid, "code", status.Code(mapped).String(), "error", err)
	}
	return mapped
}

// name is a method's without its service, unless the service is one of ours:
// several have a Watch.
func name(method string) string {
	service, method := path.Split(method)
	if ours, ok := strings.CutPrefix(service, "/legation.workload.v1."); ok {
		return strings.TrimSuffix(ours, "/") + "." + method
	}
	return method
}

// openCalls counts what is open.
type openCalls struct {
	limits Limits

	mu    sync.Mutex // guards what follows
	byUID map[uint32]int
	byPID map[int32]int
}

func (o *openCalls) add(c *workload.Caller) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	if n := o.byPID[c.PID()]; n >= o.limits.PerProcess {
		return fault.New(fault.Limited, "limited: the process (pid %d) has %d Workload API calls open, its limit; close some first", c.PID(), n)
	}
	if n := o.byUID[c.UID()]; n >= o.limits.PerUID {
		return fault.New(fault.Limited, "limited: uid %d has %d Workload API calls open, its limit; close some first", c.UID(), n)
	}
	o.byPID[c.PID()]++
	o.byUID[c.UID()]++
	return nil
}

func (o *openCalls) remove(c *workload.Caller) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.byPID[c.PID()]--; o.byPID[c.PID()] <= 0 {
		delete(o.byPID, c.PID())
	}
	if o.byUID[c.UID()]--; o.byUID[c.UID()] <= 0 {
		delete(o.byUID, c.UID())
	}
}

// since is for histograms.
func since(t time.Time) float64 { return time.Since(t).Seconds() }
