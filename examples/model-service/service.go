package main

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/legation-io/legation/sdk/acmecert"
	"github.com/legation-io/legation/sdk/drain"
	"github.com/legation-io/legation/sdk/handshake"
	"github.com/legation-io/legation/sdk/handshake/promhandshake"
	"github.com/legation-io/legation/sdk/mtls"
	"github.com/legation-io/legation/sdk/policy"
	"github.com/legation-io/legation/sdk/propagation"
	"github.com/legation-io/legation/sdk/workloadapi"

	_ "github.com/legation-io/legation/sdk/aes256gcm" // TLS_AES_256_GCM_SHA384 and nothing else, in the whole process
)

// routes say what each request means to the policy.
var routes = policy.MustRoutes(
	policy.Route{Pattern: "GET /healthz", Operation: "health"},
	policy.Route{Pattern: "GET /v1/models", Operation: "list"},
	policy.Route{Pattern: "POST /v1/models/sentiment:predict", Operation: "predict", Type: "llm", Name: "sentiment"},
	policy.Route{Pattern: "POST /v1/models/embed:predict", Operation: "predict", Type: "embedding", Name: "embed"},
)

// handler is the service itself; who calls is in the context.
func handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", healthz)
	mux.HandleFunc("GET /v1/models", list)
	mux.HandleFunc("POST /v1/models/{call}", predict)
	return mux
}

func healthz(w http.ResponseWriter, _ *http.Request) { w.Write([]byte("ok\n")) }

// public is what everybody may see.
func public() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", healthz)
	mux.HandleFunc("GET /v1/models", list)
	return mux
}

// run serves until a signal says to drain.
func run(ctx context.Context, c config, log *slog.Logger) error {
	registry := prometheus.NewRegistry()
	waiting, cancel := context.WithTimeout(ctx, c.wait)
	defer cancel()
	source, err := workloadapi.Open(waiting, workloadapi.Config{Logger: log, Registerer: registry})
	if err != nil {
		return err
	}
	defer source.Close()
	keys, err := workloadapi.OpenJWTSource(waiting, workloadapi.Config{Logger: log})
	if err != nil {
		return err
	}
	defer keys.Close()
	own, _, err := source.Current()
	if err != nil {
		return err
	}

	engine := policy.NewEngine(policy.Config{Logger: log, Registerer: registry, Probes: []policy.Probe{{
		Name:  "health is open to the own trust domain",
		Input: policy.Input{Identity: own.ID, Operation: "health", Request: policy.Request{Method: "GET", Path: "/healthz"}}, Allowed: true,
	}}})
	called, err := propagation.Server(policy.Handler(handler(), engine, routes), propagation.Config{
		Identity: source, Keys: keys, Logger: log, Registerer: registry,
	})
	if err != nil {
		return err
	}
	count, err := promhandshake.Hook(registry)
	if err != nil {
		return err
	}
	listener, err := mtls.Listen("tcp", c.listen, mtls.ServerConfig{
		Source: source, Authorize: mtls.AuthorizeMemberOf(own.ID.TrustDomain()), Profile: mtls.Strict,
		Revocation: c.revocation, NextProtos: mtls.HTTPProtos, Hooks: []handshake.Hook{count, logFailures(log)}, Logger: log,
	})
	if err != nil {
		return err
	}
	registry.MustRegister(prometheus.NewCounterFunc(prometheus.CounterOpts{
		Name: "legation_mtls_connections_ended_total", Help: "Open connections ended because their peer is believed no longer.",
	}, func() float64 { return float64(listener.Ended()) }))
	parts := []drain.Part{
		drain.HTTP(bounded(&http.Server{Handler: called}), listener),
		drain.Background("policy", func(ctx context.Context) error {
			return policy.Directory{Path: c.policies}.Run(ctx, engine)
		}),
	}
	log.Info("serving", "what", "mTLS as "+own.ID.String(), "address", listener.Addr().String())
	defer listener.Close() // in vain, unless something below fails
	if c.metrics != "" {
		l, err := net.Listen("tcp", c.metrics)
		if err != nil {
			return fmt.Errorf("-metrics: %w", err)
		}
		defer l.Close()
		mux := http.NewServeMux()
		mux.Handle("GET /metrics", promhttp.HandlerFor(registry, promhttp.HandlerOpts{}))
		parts = append(parts, drain.HTTP(bounded(&http.Server{Handler: mux}), l))
		log.Info("serving", "what", "metrics", "address", l.Addr().String())
	}
	if c.domain != "" {
		manager, err := certificates(c, registry, log)
		if err != nil {
			return err
		}
		l, err := net.Listen("tcp", c.publicListen)
		if err != nil {
			return fmt.Errorf("-public-listen: %w", err)
		}
		defer l.Close()
		errorLog := handshake.NewErrorLog(handshake.ErrorLogConfig{Logger: log})
		server := bounded(&http.Server{Handler: public(), TLSConfig: errorLog.Observe(manager.TLSConfig()), ErrorLog: errorLog.Logger()})
		parts = append(parts, drain.HTTP(server, l), drain.Background("certificates", manager.Run))
		log.Info("serving", "what", "HTTPS for everybody as "+c.domain, "address", l.Addr().String())
	}
	return drain.Run(ctx, drain.Config{Deadline: c.drain, Logger: log}, parts...)
}

// bounded ends what is slow: net/http waits for ever by itself.
func bounded(s *http.Server) *http.Server {
	s.ReadHeaderTimeout, s.ReadTimeout, s.WriteTimeout, s.IdleTimeout = 10*time.Second, 30*time.Second, 30*time.Second, 2*time.Minute
	return s
}

// certificates are the public ones, by ACME; the public port itself answers
// the CA's questions (TLS-ALPN-01).
func certificates(c config, registry prometheus.Registerer, log *slog.Logger) (*acmecert.Manager, error) {
	folder, err := acmecert.OpenFolder(acmecert.FolderConfig{Path: c.acmeFolder, KeyFile: c.acmeKey})
	if err != nil {
		return nil, err
	}
	return acmecert.New(acmecert.Config{
		Domains: []string{c.domain}, Email: c.email, TermsAgreed: c.terms, Directory: c.directory, RootCAs: c.directoryRoots,
		Storage: folder, Challenges: []acmecert.Challenge{acmecert.TLSALPN01}, Logger: log, Registerer: registry,
	})
}

func logFailures(log *slog.Logger) handshake.Hook {
	return func(ctx context.Context, e *handshake.Event) {
		if e.Err != nil {
			log.WarnContext(ctx, "handshake failed", "handshake", e.Err)
		}
	}
}
