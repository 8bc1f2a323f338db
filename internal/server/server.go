package server

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"path/filepath"
	"sync"
	"time"

	adminv1 "github.com/legation-io/legation/api/admin/v1"
	nodev1 "github.com/legation-io/legation/api/node/v1"
	"github.com/legation-io/legation/internal/acks"
	attestnode "github.com/legation-io/legation/internal/attest/node"
	"github.com/legation-io/legation/internal/attest/node/jointoken"
	"github.com/legation-io/legation/internal/attest/node/registry"
	"github.com/legation-io/legation/internal/ca"
	"github.com/legation-io/legation/internal/ca/custody/file"
	"github.com/legation-io/legation/internal/callers"
	"github.com/legation-io/legation/internal/catalog"
	"github.com/legation-io/legation/internal/clock"
	"github.com/legation-io/legation/internal/configfile"
	"github.com/legation-io/legation/internal/cutoff"
	"github.com/legation-io/legation/internal/distribute"
	"github.com/legation-io/legation/internal/durable"
	"github.com/legation-io/legation/internal/fault"
	"github.com/legation-io/legation/internal/ledger"
	"github.com/legation-io/legation/internal/objects"
	"github.com/legation-io/legation/internal/server/admin"
	"github.com/legation-io/legation/internal/server/node"
	"github.com/legation-io/legation/internal/store/etcd"
	"github.com/legation-io/legation/internal/telemetry"
	"github.com/legation-io/legation/internal/unixsocket"
	"github.com/legation-io/legation/internal/version"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
	grpccreds "google.golang.org/grpc/credentials"
	"google.golang.org/grpc/health"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/protobuf/reflect/protoreflect"
)

// Run runs a control plane until ctx ends or a part of it fails. ready is
// called once it serves.
func Run(ctx context.Context, cfg Config, log *slog.Logger, ready func()) (err error) {
	if err := cfg.Validate(); err != nil {
		return err
	}
	d, err := bind(cfg)
	if err != nil {
		return err
	}
	defer d.close()
	s, err := open(ctx, cfg, log)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.store.Close()) }()
	return s.run(ctx, d, ready)
}

// bound are the addresses a control plane listens at.
type bound struct {
	agents, people *cutoff.Listener
	metrics        net.Listener // may be nil
}

// bind comes before anything is made: who finds an address in use has done
// nothing. Who calls meanwhile waits.
func bind(cfg Config) (_ *bound, err error) {
	d := &bound{}
	defer func() {
		if err != nil {
			d.close()
		}
	}()
	tcp, err := configfile.Listen("listen", cfg.Listen)
	if err != nil {
		return nil, err
	}
	d.agents = cutoff.New(tcp)
	if d.metrics, err = configfile.Listen("metrics", cfg.Metrics); err != nil {
		return nil, err
	}
	if err := durable.OS.MkdirAll(cfg.DataDir, 0o700); err != nil { // the socket may be in it
		return nil, fault.New(fault.Invalid, "dataDir: %w", err)
	}
	local, err := unixsocket.Listen(cfg.AdminSocket, 0o600)
	if err != nil {
		return nil, fmt.Errorf("adminSocket: %w", err)
	}
	d.people = cutoff.New(local)
	return d, nil
}

func (d *bound) close() {
	if d.agents != nil {
		d.agents.Close()
	}
	if d.people != nil {
		d.people.Close()
	}
	if d.metrics != nil {
		d.metrics.Close()
	}
}

// server is an assembled control plane.
type server struct {
	cfg       Config
	log       *slog.Logger
	td        spiffeid.TrustDomain
	started   time.Time
	metrics   *prometheus.Registry
	talk      *telemetry.Sampler
	store     *etcd.Store
	journal   *ledger.Journal
	authority *ca.Authority
	registry  *registry.Registry
	catalog   *catalog.Catalog
	engine    *distribute.Engine
	creds     *credentials
	nodes     *node.Server
	acks      *acks.Ledger
	admin     *admin.Server
	operators *callers.SPIFFE
	pusher    *pusher
}

func open(ctx context.Context, cfg Config, log *slog.Logger) (_ *server, err error) {
	s := &server{cfg: cfg, log: log, td: spiffeid.RequireTrustDomainFromString(cfg.TrustDomain), started: time.Now(), metrics: telemetry.NewRegistry("legation"), talk: telemetry.NewSampler(10, time.Minute)}
	if s.store, err = etcd.Open(ctx, etcd.Config{Dir: filepath.Join(cfg.DataDir, "store"), Log: log.With("part", "store")}); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			s.store.Close()
		}
	}()
	if err := openFormat(ctx, s.store, cfg.DataDir); err != nil {
		return nil, err
	}
	if err := openTrustDomain(ctx, s.store, s.td.Name()); err != nil {
		return nil, err
	}
	inUse, err := file.Sealed(ctx, s.store, s.td.Name())
	if err != nil {
		return nil, err
	}
	kek, err := file.OpenKEK(durable.OS, cfg.KEKFile, !inUse) // a lost one is not replaced silently
	if err != nil {
		return nil, err
	}
	keys, err := file.New(file.Params{Store: s.store, TrustDomain: s.td.Name(), KEK: kek})
	if err != nil {
		return nil, err
	}
	if s.journal, err = ledger.Open(ctx, ledger.Params{Store: s.store, TrustDomain: s.td.Name(), Clock: clock.System, Log: log.With("part", "ledger"), Registerer: s.metrics}); err != nil {
		return nil, err
	}
	l := cfg.Lifetimes
	s.authority, err = ca.Open(ctx, ca.Params{
		Store: s.store, Custody: keys, Journal: s.journal, Clock: clock.System, TrustDomain: s.td, Cluster: cmp.Or(cfg.Cluster, s.td.Name()), Log: log.With("part", "ca"), Registerer: s.metrics,
		Lifetimes: ca.Lifetimes{Root: time.Duration(l.Root), Issuing: time.Duration(l.Issuing), X509Default: time.Duration(l.X509SVID), X509Max: time.Duration(l.MaxX509SVID), JWTDefault: time.Duration(l.JWTSVID)},
	})
	if err != nil {
		return nil, err
	}
	s.registry = registry.New(registry.Params{Store: s.store, TrustDomain: s.td, Log: log.With("part", "nodes")})
	s.catalog, err = catalog.Open(ctx, catalog.Params{
		Store: s.store, TrustDomain: s.td, Log: log.With("part", "catalog"), Registerer: s.metrics,
		Limits: catalog.Limits{EntriesPerNode: cfg.Limits.EntriesPerNode, EntriesPerNamespace: cfg.Limits.EntriesPerNamespace},
	})
	if err != nil {
		return nil, err
	}
	var bindings []callers.Binding
	for _, r := range cfg.Roles {
		bindings = append(bindings, callers.Binding{Role: r.Role, Namespace: r.Namespace, Subjects: r.Subjects})
	}
	if s.operators, err = callers.NewSPIFFE(s.td, bindings); err != nil {
		return nil, err
	}
	s.engine = distribute.New(distribute.Params{Clock: clock.System, Registerer: s.metrics})
	if s.creds, err = newCredentials(ctx, s.td, s.authority, clock.System, log.With("part", "tls"), s.metrics, serverNames(cfg)); err != nil {
		return nil, err
	}
	s.doors()
	return s, nil
}

// serverNames are the DNS SANs of the server's certificate.
func serverNames(cfg Config) []string {
	names := append([]string{"localhost"}, cfg.DNSNames...)
	if host, _, err := net.SplitHostPort(cfg.Listen); err == nil && host != "" && host != "localhost" && net.ParseIP(host) == nil {
		names = append(names, host)
	}
	return names
}

func (s *server) doors() {
	tokens := jointoken.New(jointoken.Params{Store: s.store, TrustDomain: s.td})
	s.acks = acks.New(acks.Params{Registerer: s.metrics})
	compiler := subjects{s.catalog}
	s.nodes = node.New(node.Params{
		TrustDomain: s.td, Authority: s.authority, Registry: s.registry, Attestors: map[string]attestnode.Attestor{tokens.Method(): tokens},
		Entries: compiler, Subjects: compiler, Engine: s.engine, Acks: s.acks,
		Objects: objects.New(objects.Params{Store: s.store, TrustDomain: s.td}),
		Bundle:  func() *nodev1.Bundle { st, _ := s.authority.State(); return st.Bundle },
		Blocked: func(node string) error { st, _ := s.authority.State(); return st.BlocksNode(node) },
		Explain: s.explain, Superseded: s.superseded,
		Refused: func(_ context.Context, r node.Refusal) {
			s.refused("refused", r.Action+" "+cmp.Or(r.Node, r.Peer)+" "+string(fault.KindOf(r.Err)), "node", r.Node, "peer", r.Peer, "action", r.Action, "object", r.Object, "error", r.Err)
		},
		Limits: nodeLimits(s.cfg.Limits), Log: s.log.With("part", "nodes"), Registerer: s.metrics, Version: version.Version,
	})
	s.pusher = &pusher{catalog: s.catalog, authority: s.authority, registry: s.registry, engine: s.engine, nodes: s.nodes, log: s.log.With("part", "push")}
	s.admin = admin.New(admin.Params{
		TrustDomain: s.td, Catalog: s.catalog, Authority: s.authority, Journal: s.journal, Registry: s.registry, Tokens: tokens, Connected: s.connected, StillBlocked: s.pusher.stillBlocked, Renewals: s.creds.renewals.list, Acks: s.acks,
		Engine: s.engine, Store: s.store, Clock: clock.System, Log: s.log.With("part", "admin"), Version: version.Version, Started: s.started,
	})
}

// connected is which nodes are here, for people.
func (s *server) connected() []admin.Presence {
	list := s.nodes.Connected()
	out := make([]admin.Presence, len(list))
	for i, p := range list {
		out[i] = admin.Presence{Node: p.Node, Since: p.Since, Version: p.Version}
	}
	return out
}

func (s *server) run(ctx context.Context, d *bound, ready func()) error {
	matrix, err := callers.New([]protoreflect.FileDescriptor{nodev1.File_api_node_v1_node_proto, adminv1.File_api_admin_v1_admin_proto}, callers.Health)
	if err != nil {
		return err
	}
	refused := func(_ context.Context, method string, i callers.Identity, err error) {
		s.refused("call refused", method+" "+i.String(), "method", method, "caller", i.String(), "error", err)
	}
	unary, stream := matrix.Interceptors(s.classify, refused)
	peers := newPeers(grpccreds.NewTLS(s.creds.config()), s.revoked)
	remote := grpc.NewServer(append(s.nodes.ServerOptions(), grpc.Creds(peers), grpc.ChainUnaryInterceptor(unary), grpc.ChainStreamInterceptor(stream))...)
	unary, stream = matrix.Interceptors(callers.As(callers.Owner), refused)
	owner := grpc.NewServer(grpc.WaitForHandlers(true), grpc.ChainUnaryInterceptor(unary), grpc.ChainStreamInterceptor(stream), grpc.MaxRecvMsgSize(80<<20))
	healthy := health.NewServer()
	s.nodes.Register(remote)
	for _, g := range []*grpc.Server{remote, owner} {
		adminv1.RegisterAdminServer(g, s.admin)
		healthv1.RegisterHealthServer(g, healthy)
		if err := matrix.CheckRegistered(g.GetServiceInfo()); err != nil {
			return err
		}
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
	part("ledger", s.journal.Run)
	part("ca", s.authority.Run)
	part("nodes", s.registry.Run)
	part("catalog", s.catalog.Run)
	part("tls", s.creds.run)
	part("revoked callers", func(ctx context.Context) error { return s.followRevocations(ctx, peers) })
	part("push trust", s.pusher.trust)
	part("push entries", s.pusher.entries)
	part("store", func(ctx context.Context) error {
		select {
		case <-ctx.Done():
			return nil
		case <-s.store.Failed():
			return fault.New(fault.Unavailable, "the store stopped; its log says why")
		}
	})
	part("agents' port", func(context.Context) error { return remote.Serve(d.agents) })
	part("admin socket", func(context.Context) error { return owner.Serve(d.people) })
	part("shutdown", func(ctx context.Context) error {
		<-ctx.Done()
		healthy.Shutdown()
		var stopping sync.WaitGroup
		stopping.Go(func() { stopGracefully(owner, d.people) })
		stopping.Go(func() { stopGracefully(remote, d.agents) })
		stopping.Wait()
		s.nodes.Wait()
		return nil
	})
	if d.metrics != nil {
		h := &telemetry.HTTP{Gatherer: s.metrics, Ready: func() error { return s.ready(ctx) }}
		part("metrics", func(ctx context.Context) error { return h.Serve(ctx, d.metrics) })
	}
	s.log.Info("control plane serves", "trust_domain", s.td.Name(), "listen", d.agents.Addr().String(), "admin_socket", s.cfg.AdminSocket, "version", version.Version, "took", time.Since(s.started).Round(time.Millisecond))
	if ready != nil {
		ready()
	}
	return group.Wait()
}

// refused writes a refusal into the log: a sample of what one caller does over
// and over, because anybody who reaches the port can bring refusals about. The
// metrics count all.
func (s *server) refused(text, kind string, args ...any) {
	level := slog.LevelWarn
	ok, left := s.talk.Allow(kind)
	if !ok {
		level = slog.LevelDebug
	}
	s.log.Log(context.Background(), level, text, append([]any{"audit", true, "left_out", left}, args...)...)
}

// ready is nil while the store answers and certificates can be signed; both
// doors are open before anybody can ask.
func (s *server) ready(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return fault.New(fault.Unavailable, "this control plane is shutting down")
	case <-s.store.Failed():
		return fault.New(fault.Unavailable, "the store stopped; the log says why")
	default:
	}
	ask, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	if _, err := s.store.Revision(ask); err != nil {
		return fmt.Errorf("the store does not answer: %w", err)
	}
	if issuing, _ := s.authority.Chain(); !clock.System.Now().Before(issuing.NotAfter) {
		return fault.New(fault.Unavailable, "the issuing CA ended at %s; nothing can be signed", issuing.NotAfter.UTC().Format(time.RFC3339))
	}
	return nil
}

// stopGracefully lets calls end, briefly: streams never do. No handler runs
// when it returns.
func stopGracefully(g *grpc.Server, l *cutoff.Listener) {
	timer := time.AfterFunc(grace, func() { l.Cut(); g.Stop() })
	defer timer.Stop()
	g.GracefulStop()
}

const grace = 500 * time.Millisecond
