// replica is one of several that serve a public name and share its certificate
// through Legation's store.
package main

import (
	"context"
	"crypto/x509"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/legation-io/legation/sdk/acmecert"
	"github.com/legation-io/legation/sdk/acmecert/objectstore"
)

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "replica:", err)
		os.Exit(1)
	}
}

func run() error {
	socket := flag.String("socket", "", "the agent's")
	keyFile := flag.String("key-file", "", "sealing key")
	directory := flag.String("directory", "", "ACME directory")
	roots := flag.String("roots", "", "PEM that verifies the directory")
	domain := flag.String("domain", "", "name to serve")
	plain := flag.String("http", "", "address for HTTP-01")
	secure := flag.String("https", "", "address for HTTPS")
	ttl := flag.Duration("lock-ttl", 0, "of a silent holder's lock")
	flag.Parse()

	pem, err := os.ReadFile(*roots)
	if err != nil {
		return err
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(pem)
	log := slog.New(slog.NewTextHandler(os.Stderr, nil))
	storage, err := objectstore.New(objectstore.Config{Addr: "unix://" + *socket, KeyFile: *keyFile, LockTTL: *ttl, Logger: log})
	if err != nil {
		return err
	}
	defer storage.Close()
	m, err := acmecert.New(acmecert.Config{
		Domains: []string{*domain}, TermsAgreed: true, Directory: *directory, RootCAs: pool, Storage: storage,
		Challenges: []acmecert.Challenge{acmecert.HTTP01}, RetryAfter: 500 * time.Millisecond, ReloadEvery: time.Second, NoARI: true, Logger: log,
	})
	if err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	defer stop()
	hello := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "well") })
	go func() { fmt.Fprintln(os.Stderr, http.ListenAndServe(*plain, m.HTTPHandler(hello))) }()
	server := &http.Server{Addr: *secure, Handler: hello, TLSConfig: m.TLSConfig(), ErrorLog: slog.NewLogLogger(slog.DiscardHandler, 0)}
	go func() { fmt.Fprintln(os.Stderr, server.ListenAndServeTLS("", "")) }()
	return m.Run(ctx)
}
