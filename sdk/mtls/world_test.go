package mtls_test

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/legation-io/legation/sdk/handshake"
	"github.com/legation-io/legation/sdk/internal/pkitest"
	"github.com/legation-io/legation/sdk/mtls"
)

const patience = time.Minute

// echo starts a raw server that echoes; it returns the listener and what was
// told of handshakes.
func echo(t testing.TB, config mtls.ServerConfig) (*mtls.Listener, *events) {
	t.Helper()
	seen := &events{}
	config.Hooks = append(config.Hooks, seen.hook)
	l, err := mtls.Listen("tcp", "127.0.0.1:0", config)
	if err != nil {
		t.Fatal(err)
	}
	var done sync.WaitGroup
	done.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			done.Go(func() {
				defer c.Close()
				if _, ok := mtls.PeerOf(c); !ok {
					t.Error("a connection without a peer")
				}
				_, err := io.Copy(c, c)
				seen.ended(err)
			})
		}
	})
	t.Cleanup(func() {
		l.Close()
		for range 1000 { // connections are the clients' to close; a test that failed may not have
			if l.Open() == 0 {
				break
			}
			time.Sleep(time.Millisecond)
		}
		done.Wait()
	})
	return l, seen
}

// events is what hooks were told.
type events struct {
	mu     sync.Mutex
	failed []*handshake.Error
	good   int
	ends   []error
}

func (e *events) hook(_ context.Context, event *handshake.Event) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if event.Err != nil {
		e.failed = append(e.failed, event.Err)
	} else {
		e.good++
	}
}

func (e *events) ended(err error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.ends = append(e.ends, err)
}

// says waits for the last failure to have a cause.
func (e *events) says(t testing.TB, want handshake.Cause, words ...string) {
	t.Helper()
	for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(time.Millisecond) {
		if last := e.last(); last != nil && last.Cause == want {
			wantCause(t, last, want, words...)
			return
		}
	}
	t.Errorf("want cause %s, the last failure that was told is %v", want, e.last())
}

func (e *events) endings() int {
	e.mu.Lock()
	defer e.mu.Unlock()
	return len(e.ends)
}

func (e *events) last() *handshake.Error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if len(e.failed) == 0 {
		return nil
	}
	return e.failed[len(e.failed)-1]
}

// talk sends a line and reads it back: only that proves in TLS 1.3 that the
// server took the client.
func talk(c net.Conn) error {
	c.SetDeadline(time.Now().Add(patience))
	if _, err := io.WriteString(c, "hello\n"); err != nil {
		return err
	}
	got := make([]byte, 6)
	if _, err := io.ReadFull(c, got); err != nil {
		return mtls.Explain(context.Background(), c, err)
	}
	c.SetDeadline(time.Time{})
	return nil
}

// dial connects and talks.
func dial(t testing.TB, d *mtls.Dialer, address string) (net.Conn, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	c, err := d.DialContext(ctx, "tcp", address)
	if err != nil {
		return nil, err
	}
	if err := talk(c); err != nil {
		c.Close()
		return nil, err
	}
	t.Cleanup(func() { c.Close() })
	return c, nil
}

// closed waits until a connection ends, and returns how.
func closed(t testing.TB, c net.Conn) error {
	t.Helper()
	c.SetReadDeadline(time.Now().Add(patience))
	_, err := c.Read(make([]byte, 1))
	var timeout net.Error
	if err == nil || errors.As(err, &timeout) && timeout.Timeout() {
		t.Errorf("the connection is still open (%v)", err)
	}
	return err
}

func open(t testing.TB, c net.Conn) {
	t.Helper()
	if err := talk(c); err != nil {
		t.Errorf("a bystander's connection: %v", err)
	}
}

func wantCause(t testing.TB, err error, want handshake.Cause, words ...string) {
	t.Helper()
	e, ok := errors.AsType[*handshake.Error](err)
	if !ok {
		t.Fatalf("want a handshake error with cause %s, got %T %v", want, err, err)
	}
	if e.Cause != want {
		t.Errorf("want cause %s, got %s: %v", want, e.Cause, e)
	}
	for _, w := range words {
		if !strings.Contains(e.Error(), w) {
			t.Errorf("want %q in: %v", w, e)
		}
	}
}

func until(t testing.TB, what string, f func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !f(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("waited %s for: %s", patience, what)
		}
	}
}

// pair is a server and a client of one trust domain.
type pair struct {
	*pkitest.Domain
	l      *mtls.Listener
	seen   *events
	server mtls.ServerConfig
	client mtls.ClientConfig
}

func newPair(t testing.TB, change func(*pkitest.Domain, *mtls.ServerConfig, *mtls.ClientConfig)) *pair {
	t.Helper()
	p := &pair{Domain: pkitest.New(t, "example.org", nil)}
	p.server = mtls.ServerConfig{Source: p.Source(model), Authorize: mtls.AuthorizeMemberOf(p.TrustDomain)}
	p.client = mtls.ClientConfig{Source: p.Source(web), Authorize: mtls.AuthorizeID(p.ID(model))}
	if change != nil {
		change(p.Domain, &p.server, &p.client)
	}
	p.l, p.seen = echo(t, p.server)
	return p
}

func (p *pair) address() string { return p.l.Addr().String() }

// plain is a tls.Config of crypto/tls alone with a certificate, that believes
// anybody.
func plain(cert *tls.Certificate) *tls.Config {
	return &tls.Config{InsecureSkipVerify: true, GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
		if cert == nil {
			return &tls.Certificate{}, nil
		}
		return cert, nil
	}}
}

func plainDial(t testing.TB, address string, config *tls.Config) (*tls.Conn, error) {
	t.Helper()
	c, err := tls.DialWithDialer(&net.Dialer{Timeout: patience}, "tcp", address, config)
	if err != nil {
		return nil, err
	}
	t.Cleanup(func() { c.Close() })
	return c, talk(c)
}
