package agent

import (
	"cmp"
	"context"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"time"

	nodev1 "github.com/legation-io/legation/api/node/v1"
	"github.com/legation-io/legation/internal/agent/sds"
	"github.com/legation-io/legation/internal/agent/session"
	"github.com/legation-io/legation/internal/agent/svid"
	"github.com/legation-io/legation/internal/agent/upstream"
	"github.com/legation-io/legation/internal/agent/workloadapi"
	attestnode "github.com/legation-io/legation/internal/attest/node"
	"github.com/legation-io/legation/internal/attest/workload"
	"github.com/legation-io/legation/internal/clock"
	"github.com/legation-io/legation/internal/configfile"
	"github.com/legation-io/legation/internal/distribute"
	"github.com/legation-io/legation/internal/durable"
	"github.com/legation-io/legation/internal/fault"
	"github.com/legation-io/legation/internal/sealed"
	"github.com/legation-io/legation/internal/telemetry"
	"github.com/legation-io/legation/internal/unixsocket"
	"github.com/legation-io/legation/internal/version"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"golang.org/x/sync/errgroup"
)

// Run runs an agent until ctx ends or a part of it fails.
func Run(ctx context.Context, cfg Config, log *slog.Logger) error {
	if err := cfg.Validate(); err != nil {
		return err
	}
	if err := durable.OS.MkdirAll(cfg.DataDir, 0o700); err != nil {
		return fault.New(fault.Invalid, "dataDir: %w", err)
	}
	lock, err := durable.LockDir(ctx, cfg.DataDir)
	if err != nil {
		return err
	}
	defer lock.Release()
	a, err := newAgent(cfg, log)
	if err != nil {
		return err
	}
	return a.run(ctx)
}

// agent is an assembled agent.
type agent struct {
	cfg      Config
	log      *slog.Logger
	td       spiffeid.TrustDomain
	started  time.Time
	metrics  *prometheus.Registry
	talk     *telemetry.Sampler
	link     *upstream.Link
	manager  *svid.Manager
	attestor *workload.Attestor
	engine   *distribute.Engine
	sessions *session.Server
	envoys   *envoyDoor
	sds      *sds.Server
	api      *workloadapi.Server
}

func newAgent(cfg Config, log *slog.Logger) (*agent, error) {
	a := &agent{cfg: cfg, log: log, td: spiffeid.RequireTrustDomainFromString(cfg.TrustDomain), started: time.Now(), metrics: telemetry.NewRegistry("legation-agent"), talk: telemetry.NewSampler(10, time.Minute)}
	box, err := sealed.Open(durable.OS, filepath.Join(cfg.DataDir, "cache"))
	if err != nil {
		return nil, err
	}
	roots, err := readRoots(cfg.BundleFile)
	if err != nil {
		return nil, err
	}
	prover, err := readToken(cfg.JoinTokenFile, log)
	if err != nil {
		return nil, err
	}
	a.link = upstream.New(upstream.Params{
		Servers: cfg.Servers, TrustDomain: a.td, Roots: roots, BundleHash: cfg.BundleHash, Prover: prover, DNSNames: cfg.SDS.names(), Cache: box,
		OnConfig: a.onConfig, Snapshot: a.snapshot, Log: log.With("part", "link"), Registerer: a.metrics, Version: version.Version,
	})
	a.manager = svid.New(svid.Params{
		Views: a.link, Signer: a.link, CacheSize: cfg.CacheSize, HoldOff: time.Duration(cfg.HoldOff), Sealed: box, OwnIPs: ownIPs,
		Superseded: func(serials []string) { a.link.Report(&nodev1.ReportRequest{SupersededSerials: serials}) },
		Log:        log.With("part", "svid"), Registerer: a.metrics,
	})
	a.attestor = workload.NewAttestor(workload.Params{Want: a.manager.Want, Log: log.With("part", "attest"), Registerer: a.metrics})
	a.engine = distribute.New(distribute.Params{Clock: clock.System, OnStatus: a.onStatus, Registerer: a.metrics})
	streams := sds.NewMetrics(a.metrics)
	a.sessions = session.New(session.Params{
		TrustDomain: a.td.Name(), RunDir: cfg.RunDir, Manager: a.manager, Attestor: a.attestor, Views: a.link, Link: a.link, Engine: a.engine,
		Clock: clock.System, Log: log.With("part", "session"), Registerer: a.metrics, SDS: streams,
	})
	a.envoys = newEnvoyDoor(a.manager, a.engine, a.link, time.Duration(cfg.HoldOff))
	a.sds = sds.New(sds.Params{Engine: a.engine, Authorise: a.envoys.authorise, Log: log.With("part", "sds"), Metrics: streams})
	a.api = workloadapi.New(workloadapi.Params{
		Manager: a.manager, Views: a.link, Objects: a.link, Attestor: a.attestor, TrustDomain: a.td, Log: log.With("part", "workloadapi"), Registerer: a.metrics,
		OnDelivered: a.delivered, OnGone: func(subscriber string) { a.link.Report(&nodev1.ReportRequest{Gone: []string{subscriber}}) },
	})
	a.metrics.MustRegister(linkCollector{a.link})
	return a, nil
}

// readRoots reads the pinned roots; none without a file.
func readRoots(path string) ([]*x509.Certificate, error) {
	if path == "" {
		return nil, nil
	}
	raw, err := os.ReadFile(path)
	if err != nil {
		return nil, fault.New(fault.Invalid, "bundleFile: %w", err)
	}
	var roots []*x509.Certificate
	for {
		var block *pem.Block
		if block, raw = pem.Decode(raw); block == nil {
			break
		}
		root, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fault.New(fault.Invalid, "bundleFile %s: %w", path, err)
		}
		roots = append(roots, root)
	}
	if len(roots) == 0 {
		return nil, fault.New(fault.Invalid, "bundleFile %s: no CERTIFICATE block in it; legation bundle show prints one", path)
	}
	return roots, nil
}

// readToken is how this node proves itself the first time.
func readToken(path string, log *slog.Logger) (attestnode.Prover, error) {
	if path == "" {
		return nil, nil
	}
	raw, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		// Used and removed: the cached identity serves. Without one the
		// link says what is missing.
		log.Info("there is no join token; the cached identity is used", "joinTokenFile", path)
		return nil, nil
	}
	if err != nil {
		return nil, fault.New(fault.Invalid, "joinTokenFile: %w", err)
	}
	token := strings.TrimSpace(string(raw))
	if token == "" {
		return nil, fault.New(fault.Invalid, "joinTokenFile %s is empty; legation token create prints a token", path)
	}
	return attestnode.Proof(attestnode.JoinToken, []byte(token)), nil
}

// ownIPs are this machine's global addresses, for entries that include them.
func ownIPs() []netip.Addr {
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		return nil
	}
	var ips []netip.Addr
	for _, a := range addrs {
		if n, ok := a.(*net.IPNet); ok && n.IP.IsGlobalUnicast() {
			if ip, ok := netip.AddrFromSlice(n.IP); ok {
				ips = append(ips, ip.Unmap())
			}
		}
	}
	return ips
}

func (a *agent) onConfig(subject string, u upstream.ConfigUpdate) error {
	var refusal error
	if u.Refusal != nil {
		refusal = fault.New(fault.Kind(u.Refusal.Kind), "%s", u.Refusal.Message)
	}
	a.sessions.OnConfig(subject, u.Changes, refusal)
	return nil
}

// onStatus passes on what local Envoys acknowledged.
func (a *agent) onStatus(list []distribute.Status) {
	a.sessions.OnStatus(list)
	a.envoys.onStatus(list)
}

func (a *agent) snapshot() *nodev1.ReportRequest {
	r := a.sessions.Snapshot()
	r.States = append(r.States, a.envoys.states()...)
	r.SupersededSerials = a.manager.Superseded()
	return r
}

// delivered reports a Workload API caller that was handed a CRL.
func (a *agent) delivered(subscriber, spiffeID string, crl map[string]uint64) {
	number := uint64(0)
	for _, n := range crl {
		number = max(number, n)
	}
	version := fmt.Sprint(number)
	a.link.Report(&nodev1.ReportRequest{States: []*nodev1.SubscriberState{{
		Subscriber: subscriber, Class: nodev1.Class_CLASS_DELIVERED, SpiffeId: spiffeID, Type: "workload-api", Name: "x509",
		SentVersion: version, AckedVersion: version, AckedCrlNumber: number, SinceUnixNano: time.Now().UnixNano(),
	}}})
}

func (a *agent) run(ctx context.Context) error {
	// Before any part runs: an address in use ends nothing halfway.
	public, err := unixsocket.Listen(a.cfg.Socket, 0o666)
	if err != nil {
		return fmt.Errorf("socket: %w", err)
	}
	defer public.Close()
	private, err := unixsocket.Listen(a.cfg.AdminSocket, 0o600)
	if err != nil {
		return fmt.Errorf("adminSocket: %w", err)
	}
	defer private.Close()
	secrets, err := configfile.Listen("sds.listen", a.cfg.SDS.Listen)
	if err != nil {
		return err
	}
	if secrets != nil {
		defer secrets.Close()
	}
	metrics, err := configfile.Listen("metrics", a.cfg.Metrics)
	if err != nil {
		return err
	}
	if metrics != nil {
		defer metrics.Close()
	}
	if err := a.sessions.Sweep(); err != nil {
		return fmt.Errorf("runDir: %w", err)
	}
	open, err := a.doors(public, private, secrets)
	if err != nil {
		return err
	}
	group, ctx := errgroup.WithContext(ctx)
	part := func(name string, f func(context.Context) error) {
		group.Go(func() error {
			if err := f(ctx); err != nil && ctx.Err() == nil {
				return fmt.Errorf("%s: %w", name, err)
			}
			return nil
		})
	}
	part("link", a.link.Run)
	part("svid", a.manager.Run)
	part("attest", a.attestor.Run)
	for _, d := range open {
		part(d.name, func(context.Context) error { return d.server.Serve(d.listener) })
	}
	part("shutdown", func(ctx context.Context) error {
		<-ctx.Done()
		a.sessions.Close()
		stop(open)
		a.sessions.Wait()
		a.envoys.wait()
		a.sds.Wait()
		return nil
	})
	if metrics != nil {
		h := &telemetry.HTTP{Gatherer: a.metrics, Ready: a.ready, Extra: map[string]http.Handler{"GET /metrics/envoy": http.HandlerFunc(a.envoyMetrics)}}
		part("metrics", func(ctx context.Context) error { return h.Serve(ctx, metrics) })
	}
	a.log.Info("agent serves", "trust_domain", a.td.Name(), "socket", a.cfg.Socket, "sds_listen", a.cfg.SDS.Listen, "admin_socket", a.cfg.AdminSocket, "version", version.Version, "took", time.Since(a.started).Round(time.Millisecond))
	return group.Wait()
}

// ready is nil once secrets can be served, from the control plane or from the
// cache: entries, and the roots and CRL to verify peers by.
func (a *agent) ready() error {
	view, _ := a.link.View()
	switch bundle := view.Bundles[a.td.Name()]; {
	case !view.Synced:
		return fault.New(fault.Unavailable, "nothing received from the control plane yet: %s", cmp.Or(view.LastError, "still connecting"))
	case bundle == nil || len(bundle.X509Roots) == 0:
		return fault.New(fault.Unavailable, "the trust bundle of %s has not been received yet", a.td.Name())
	case len(view.CRLs) == 0:
		return fault.New(fault.Unavailable, "no CRL of %s has been received yet; without one nobody can be verified", a.td.Name())
	}
	return nil
}
