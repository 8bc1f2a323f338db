// Package acme runs the SDK's ACME client against the real Pebble and against
// a front before it that misbehaves.
package acme

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/legation-io/legation/sdk/acmecert"
	"github.com/legation-io/legation/test/acme/pebble"
	"github.com/legation-io/legation/test/e2e/world"
)

func TestMain(m *testing.M) {
	code := world.Run(m)
	pebble.RemoveBuilt()
	os.Exit(code)
}

// site is a public server: a port 80 and a port 443 of its own.
type site struct {
	t       testing.TB
	http    net.Listener
	https   net.Listener
	Manager *acmecert.Manager
	Log     *logBuffer
}

type logBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// newSite listens; what answers is set by serve.
func newSite(t testing.TB) *site {
	t.Helper()
	s := &site{t: t, Log: &logBuffer{}}
	var err error
	if s.http, err = net.Listen("tcp", "127.0.0.1:0"); err != nil {
		t.Fatal(err)
	}
	if s.https, err = net.Listen("tcp", "127.0.0.1:0"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.http.Close(); s.https.Close() })
	return s
}

func port(l net.Listener) int { return l.Addr().(*net.TCPAddr).Port }

// options of a Pebble that looks for answers here.
func (s *site) options() pebble.Options {
	return pebble.Options{HTTPPort: port(s.http), TLSPort: port(s.https), Env: []string{"PEBBLE_VA_NOSLEEP=1", "PEBBLE_WFE_NONCEREJECT=0"}}
}

// config for a Manager that orders of p.
func (s *site) config(p *pebble.Pebble, domains ...string) acmecert.Config {
	level := slog.LevelInfo
	if os.Getenv("LEGATION_TEST_DEBUG") != "" {
		level = slog.LevelDebug
	}
	return acmecert.Config{
		Domains: domains, Email: "ops@example.org", TermsAgreed: true, Directory: p.Directory, RootCAs: p.TLS,
		Storage: &acmecert.Memory{}, RetryAfter: 200 * time.Millisecond, ReloadEvery: 500 * time.Millisecond,
		Logger: slog.New(slog.NewTextHandler(s.Log, &slog.HandlerOptions{Level: level})),
	}
}

// manage runs a Manager and serves by it until the test ends.
func (s *site) manage(c acmecert.Config) *acmecert.Manager {
	s.t.Helper()
	m := s.run(c)
	s.serve(m)
	return m
}

// run runs a Manager until the test ends.
func (s *site) run(c acmecert.Config) *acmecert.Manager {
	s.t.Helper()
	m, err := acmecert.New(c)
	if err != nil {
		s.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- m.Run(ctx) }()
	s.t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			s.t.Errorf("Run: %v", err)
		}
		if s.t.Failed() {
			log := s.Log.String()
			s.t.Logf("the log:\n%s", log[max(0, len(log)-8000):])
		}
	})
	s.Manager = m
	return m
}

// serve answers at both ports by m.
func (s *site) serve(m *acmecert.Manager) {
	mux := http.NewServeMux()
	mux.HandleFunc("/health", func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "well") })
	plain := &http.Server{Handler: m.HTTPHandler(mux)}
	secure := &http.Server{Handler: mux, TLSConfig: m.TLSConfig(), ErrorLog: slog.NewLogLogger(slog.DiscardHandler, 0)}
	go plain.Serve(s.http)
	go secure.ServeTLS(s.https, "", "")
	s.t.Cleanup(func() { plain.Close(); secure.Close() })
}

// wait until every domain has a certificate.
func (s *site) wait(within time.Duration) {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), within)
	defer cancel()
	if err := s.Manager.Wait(ctx); err != nil {
		s.t.Fatal(err)
	}
}

// dial makes a TLS connection to the site.
func (s *site) dial(name string, roots *x509.CertPool) (*tls.Conn, error) {
	return tls.Dial("tcp", s.https.Addr().String(), &tls.Config{ServerName: name, RootCAs: roots, NextProtos: []string{"http/1.1"}})
}

// leaf is what the site shows under a name, verified.
func (s *site) leaf(name string, roots *x509.CertPool) (*x509.Certificate, error) {
	c, err := s.dial(name, roots)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	return c.ConnectionState().PeerCertificates[0], nil
}

// patience is how long what must come is waited for.
const patience = 90 * time.Second

func until(t testing.TB, what string, f func() bool) {
	t.Helper()
	deadline := time.Now().Add(patience)
	for !f() {
		if time.Now().After(deadline) {
			t.Fatalf("not within %s: %s", patience, what)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

func serial(c *x509.Certificate) string { return fmt.Sprintf("%x", c.SerialNumber) }
