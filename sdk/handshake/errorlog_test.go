package handshake

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/legation-io/legation/sdk/chaincheck"
)

// records is a JSON log that can be waited for.
type records struct {
	mu   sync.Mutex
	wake chan struct{}
	buf  bytes.Buffer
}

func (r *records) Write(p []byte) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.buf.Write(p)
	if r.wake != nil {
		close(r.wake)
		r.wake = nil
	}
	return len(p), nil
}

// next waits for one record.
func (r *records) next(t *testing.T) map[string]any {
	t.Helper()
	deadline := time.After(patience)
	for {
		r.mu.Lock()
		line, err := r.buf.ReadBytes('\n')
		if err == nil {
			r.mu.Unlock()
			var m map[string]any
			if err := json.Unmarshal(line, &m); err != nil {
				t.Fatalf("%q: %v", line, err)
			}
			return m
		}
		if r.wake == nil {
			r.wake = make(chan struct{})
		}
		wake := r.wake
		r.mu.Unlock()
		select {
		case <-wake:
		case <-deadline:
			t.Fatal("nothing was logged")
		}
	}
}

// serveHTTP runs a real http.Server.
func serveHTTP(t *testing.T, config *tls.Config, l *ErrorLog, observe bool) net.Addr {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	if observe {
		config = l.Observe(config)
	}
	server := &http.Server{TLSConfig: config, ErrorLog: l.Logger(), Handler: http.NotFoundHandler(), ReadHeaderTimeout: patience}
	done := make(chan error, 1)
	go func() { done <- server.ServeTLS(listener, "", "") }()
	t.Cleanup(func() { server.Close(); <-done })
	return listener.Addr()
}

func TestErrorLogOfARealHTTPServer(t *testing.T) {
	w := newWorld(t)
	judged := func() *tls.Config {
		c := serving(w.server)
		verify := w.judge(chaincheck.Client)
		c.VerifyConnection = func(cs tls.ConnectionState) error { return verify(context.Background(), cs) }
		return c
	}
	byGo := func() *tls.Config {
		return &tls.Config{Certificates: []tls.Certificate{w.server}, ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: w.root.pool(), MinVersion: tls.VersionTLS13}
	}
	foreign := w.foreign.issue(t, "spiffe://example.org/client", nil)
	call := func(change func(*tls.Config), certs ...tls.Certificate) func(net.Conn) {
		return func(conn net.Conn) {
			c := calling()
			c.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
				if len(certs) == 0 {
					return &tls.Certificate{}, nil
				}
				return &certs[0], nil
			}
			if change != nil {
				change(c)
			}
			client := tls.Client(conn, c)
			if client.Handshake() == nil {
				client.Read(make([]byte, 1))
			}
		}
	}
	for _, row := range []struct {
		name   string
		config *tls.Config
		blind  bool // without Observe
		client func(net.Conn)
		want   map[string]string
	}{
		{"no certificate", byGo(), false, call(nil), map[string]string{"cause": "no_certificate", "whose": "peer", "sni": "localhost", "level": "WARN"}},
		{"unknown CA, by crypto/tls", byGo(), false, call(nil, foreign), map[string]string{"cause": "unknown_ca", "whose": "peer", "sni": "localhost"}},
		{"unknown CA, by our verifier", judged(), false, call(nil, foreign),
			map[string]string{"cause": "unknown_ca", "version": "TLS 1.3", "anchor": `1 roots of example.org: "CN=home root"`, "offered": "TLS 1.3, TLS 1.2"}},
		{"without having seen the hello", judged(), true, call(nil, foreign), map[string]string{"cause": "unknown_ca", "sni": "<nil>"}},
		{"an old client", byGo(), false, call(func(c *tls.Config) { c.MaxVersion = tls.VersionTLS12 }),
			map[string]string{"cause": "protocol_version", "sni": "localhost", "offered": "TLS 1.2"}},
		{"a client that refuses us", byGo(), false, call(func(c *tls.Config) { c.InsecureSkipVerify = false; c.RootCAs = w.foreign.pool() }),
			map[string]string{"cause": "rejected", "whose": "own", "refused_by": "peer", "alert": `"bad certificate" (42)`}},
		{"plaintext HTTP", byGo(), false, func(c net.Conn) { io.WriteString(c, "GET / HTTP/1.0\r\n\r\n"); io.Copy(io.Discard, c) },
			map[string]string{"cause": "not_tls", "level": "INFO", "detail": "the peer does not speak TLS, it looks like HTTP without TLS"}},
		{"SSH", byGo(), false, func(c net.Conn) { io.WriteString(c, "SSH-2.0-x\r\n"); io.Copy(io.Discard, c) }, map[string]string{"cause": "not_tls"}},
		{"a scan", byGo(), false, func(net.Conn) {}, map[string]string{"cause": "closed", "level": "INFO"}},
		{"a server name that would be a line of its own", byGo(), false, call(func(c *tls.Config) { c.ServerName = "x\nlevel=ERROR msg=\"disk full\" \x1b[31m\u202e" }),
			map[string]string{"cause": "no_certificate", "sni": `x\nlevel=ERROR msg="disk full" \x1b[31m\u202e`}},
	} {
		t.Run(row.name, func(t *testing.T) {
			var log records
			told := make(chan *Event, 10)
			l := NewErrorLog(ErrorLogConfig{Logger: slog.New(slog.NewJSONHandler(&log, nil)), Hooks: []Hook{func(_ context.Context, e *Event) { told <- e }}})
			addr := serveHTTP(t, row.config, l, !row.blind)
			conn, err := net.Dial("tcp", addr.String())
			if err != nil {
				t.Fatal(err)
			}
			row.client(conn)
			conn.Close()
			got := log.next(t)
			want := map[string]string{"msg": "TLS handshake failed", "remote": conn.LocalAddr().String(), "error_type": ErrorType, "guide": Guide + "#" + row.want["cause"]}
			for k, v := range row.want {
				want[k] = v
			}
			for k, v := range want {
				if fmt.Sprint(got[k]) != v {
					t.Errorf("%s is %q, want %q", k, got[k], v)
				}
			}
			if t.Failed() {
				t.Log(got)
			}
			if e := <-told; e.Err == nil || string(e.Err.Cause) != want["cause"] || len(told) > 0 {
				t.Errorf("the hook was told %+v", e)
			}
			if l.forget(conn.LocalAddr().String()) != nil {
				t.Error("the hello of a failed handshake is still remembered")
			}
			l.mu.Lock()
			defer l.mu.Unlock()
			for _, h := range l.ring {
				if state, err := h.refusal(); err != nil || state != nil {
					t.Errorf("its chain is still remembered, with %v", err)
				}
			}
		})
	}
}

func TestErrorLogPassesOnOtherLines(t *testing.T) {
	var log records
	l := NewErrorLog(ErrorLogConfig{Logger: slog.New(slog.NewJSONHandler(&log, nil))})
	l.Logger().Printf("http: panic serving 10.0.0.1:4711: boom\ngoroutine 7:\n\tmain.go:3")
	if got := log.next(t); got["line"] != `http: panic serving 10.0.0.1:4711: boom\ngoroutine 7:\n\tmain.go:3` {
		t.Errorf("%v", got)
	}
	io.WriteString(l, "http: TLS handshake error from [fe80::1%eth0]:4711: tls: client didn't provide a certificate\n")
	if got := log.next(t); got["remote"] != "[fe80::1%eth0]:4711" || got["cause"] != "no_certificate" {
		t.Errorf("%v", got)
	}
}

func TestObserveRemembersABoundedNumberOfBoundedHellos(t *testing.T) {
	const most = 8
	l := NewErrorLog(ErrorLogConfig{MaxHellos: most})
	long := strings.Repeat("x", 60000)
	var last string
	for n := range 100 {
		a, b := net.Pipe()
		last = fmt.Sprintf("10.0.0.1:%d", n)
		l.remember(&tls.ClientHelloInfo{Conn: addressed{a, last}, ServerName: long, SupportedVersions: make([]uint16, 5000), SupportedProtos: []string{long, long}})
		a.Close()
		b.Close()
	}
	if len(l.hellos) != most || len(l.ring) != most {
		t.Errorf("%d hellos, %d in the ring", len(l.hellos), len(l.ring))
	}
	h := l.forget(last)
	if h == nil || len(h.sni) > 300 || len(h.offered) > 100 || len(h.alpn[0]) > 100 {
		t.Errorf("the last one is %+v", h)
	}
}

type addressed struct {
	net.Conn
	remote string
}

func (a addressed) RemoteAddr() net.Addr { return textAddr(a.remote) }

func FuzzErrorLogLine(f *testing.F) {
	for _, line := range []string{
		"http: TLS handshake error from 127.0.0.1:4711: EOF\n",
		"http: TLS handshake error from [::1]:1: remote error: tls: bad certificate",
		"http: TLS handshake error from x: TLS handshake from y failed (revoked): z; see",
		"http: TLS handshake error from x: chain refused (expired): \"a\nb\"",
		"http: TLS handshake error from : : ",
		"http: panic serving x: y\n\tz",
	} {
		f.Add(line)
	}
	f.Fuzz(func(t *testing.T, line string) {
		var text bytes.Buffer
		var told []*Event
		l := NewErrorLog(ErrorLogConfig{Logger: slog.New(slog.NewTextHandler(&text, nil)), Hooks: []Hook{func(_ context.Context, e *Event) { told = append(told, e) }}})
		if n, err := l.Write([]byte(line)); n != len(line) || err != nil {
			t.Fatalf("%d %v", n, err)
		}
		if got := strings.Count(text.String(), "\n"); got != 1 {
			t.Fatalf("%d lines: %q", got, text.String())
		}
		for _, e := range told {
			if !known[e.Err.Cause] {
				t.Fatalf("cause %q", e.Err.Cause)
			}
			if s := e.Err.Error(); strings.ContainsAny(s, "\n\r\x1b\x00") || len(s) > 8<<10 {
				t.Fatalf("%q", s)
			}
		}
	})
}
