package handshake

import (
	"context"
	"crypto/tls"
	"errors"
	"log"
	"log/slog"
	"net"
	"slices"
	"strings"
	"sync"
	"time"
)

// ErrorLogConfig is how an ErrorLog reports. The zero value works.
type ErrorLogConfig struct {
	// Logger gets what net/http says; nil is slog.Default().
	Logger *slog.Logger
	// Hooks are called for each failed handshake, e.g. promhandshake.Hook.
	Hooks []Hook
	// MaxHellos bounds how many connections' hellos are remembered until their
	// handshake failed or newer ones came; zero is 1024. One takes less than
	// 2 KiB.
	MaxHellos int
}

// ErrorLog is for servers whose handshakes net/http does: it turns the lines of
// http.Server.ErrorLog into records of slog with the cause, and knows the
// client's hello when the server's tls.Config went through Observe.
//
//	errorLog := handshake.NewErrorLog(handshake.ErrorLogConfig{})
//	server := &http.Server{TLSConfig: errorLog.Observe(config), ErrorLog: errorLog.Logger()}
//
// It is safe for use by many goroutines.
type ErrorLog struct {
	config ErrorLogConfig

	mu     sync.Mutex // guards what follows
	hellos map[string]*hello
	ring   []*hello // oldest at next, once full
	next   int
}

// hello is what is remembered of a connection.
type hello struct {
	remote  string
	sni     string
	offered []uint16
	alpn    []string
	local   net.Addr
	start   time.Time

	mu    sync.Mutex // guards what follows
	err   error      // what a callback refused with
	state *tls.ConnectionState
}

// NewErrorLog returns an ErrorLog. It starts nothing.
func NewErrorLog(c ErrorLogConfig) *ErrorLog {
	if c.Logger == nil {
		c.Logger = slog.Default()
	}
	if c.MaxHellos <= 0 {
		c.MaxHellos = 1024
	}
	return &ErrorLog{config: c, hellos: map[string]*hello{}}
}

// Logger is what belongs into http.Server.ErrorLog.
func (l *ErrorLog) Logger() *log.Logger { return log.New(l, "", 0) }

// Observe returns a copy of base whose hellos are remembered. Its callbacks run
// as they did, and those that base has not are not added, GetConfigForClient
// apart.
func (l *ErrorLog) Observe(base *tls.Config) *tls.Config {
	c := base.Clone()
	inner := base.GetConfigForClient
	c.GetConfigForClient = func(info *tls.ClientHelloInfo) (*tls.Config, error) {
		h := l.remember(info)
		chosen := base
		if inner != nil {
			special, err := inner(info)
			if err != nil {
				h.refuse(err, nil)
				return nil, err
			}
			if special != nil {
				chosen = special
			}
		}
		if chosen == base && base.VerifyConnection == nil && base.GetCertificate == nil {
			return nil, nil
		}
		return h.follow(chosen), nil
	}
	return c
}

// follow notes the errors of callbacks, which net/http only prints.
func (h *hello) follow(base *tls.Config) *tls.Config {
	c := base.Clone()
	if verify := base.VerifyConnection; verify != nil {
		c.VerifyConnection = func(cs tls.ConnectionState) error {
			err := verify(cs)
			if err != nil {
				h.refuse(err, &cs)
			}
			return err
		}
	}
	if get := base.GetCertificate; get != nil {
		c.GetCertificate = func(info *tls.ClientHelloInfo) (*tls.Certificate, error) {
			own, err := get(info)
			if err != nil {
				h.refuse(err, nil)
			}
			return own, err
		}
	}
	return c
}

func (h *hello) refuse(err error, cs *tls.ConnectionState) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.err = err
	if cs != nil {
		state := *cs
		h.state = &state
	}
}

// refusal gives out what refuse noted, and keeps none of it: the ring holds the
// hello until newer ones came, and a chain of certificates is not small.
func (h *hello) refusal() (*tls.ConnectionState, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	err, cs := h.err, h.state
	h.err, h.state = nil, nil
	return cs, err
}

// remember copies what is kept, so that no client decides how much that is.
func (l *ErrorLog) remember(info *tls.ClientHelloInfo) *hello {
	h := &hello{
		remote: info.Conn.RemoteAddr().String(), local: info.Conn.LocalAddr(), start: time.Now(),
		sni: cut(info.ServerName, maxName), offered: slices.Clone(info.SupportedVersions[:min(len(info.SupportedVersions), 2*maxList)]),
	}
	for _, p := range info.SupportedProtos[:min(len(info.SupportedProtos), maxList)] {
		h.alpn = append(h.alpn, cut(p, 40))
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.ring) < l.config.MaxHellos {
		l.ring = append(l.ring, h)
	} else {
		if old := l.ring[l.next]; l.hellos[old.remote] == old {
			delete(l.hellos, old.remote)
		}
		l.ring[l.next] = h
		l.next = (l.next + 1) % len(l.ring)
	}
	l.hellos[h.remote] = h
	return h
}

func (l *ErrorLog) forget(remote string) *hello {
	l.mu.Lock()
	defer l.mu.Unlock()
	h := l.hellos[remote]
	delete(l.hellos, remote)
	return h
}

// Write takes one line of net/http's. It implements io.Writer and never fails.
func (l *ErrorLog) Write(line []byte) (int, error) {
	remote, reason, ok := parseLine(string(line))
	if !ok {
		l.config.Logger.Warn("http server", "line", clean(strings.TrimRight(string(line), "\n"), 4*maxText))
		return len(line), nil
	}
	e, start := l.failure(remote, reason)
	ctx := context.Background()
	logFailure(ctx, l.config.Logger, e)
	event := &Event{Side: Server, Remote: e.Remote, Local: e.Local, SNI: e.SNI, Start: start, Duration: time.Since(start), Err: e}
	for _, hook := range l.config.Hooks {
		hook(ctx, event)
	}
	return len(line), nil
}

// failure is what is known of a handshake that net/http reports.
func (l *ErrorLog) failure(remote, reason string) (*Error, time.Time) {
	e := &Error{Side: Server, Remote: textAddr(clean(remote, maxName)), Err: textError(clean(reason, maxText))}
	h := l.forget(remote)
	if reason == "local error: tls: bad record MAC" {
		e.Hint = "so it looks when a client on OpenSSL (Python, curl) refuses this server's certificate"
	}
	if h == nil {
		e.classifyText(reason)
		return e, time.Now()
	}
	e.SNI, e.Offered, e.Protocols, e.Local = h.sni, h.offered, h.alpn, h.local
	cs, err := h.refusal()
	if cs != nil {
		e.Version, e.CipherSuite, e.Chain = cs.Version, cs.CipherSuite, cs.PeerCertificates
	}
	if err == nil {
		e.classifyText(reason)
		return e, h.start
	}
	e.Err = err
	e.classify(err)
	if r, ok := errors.AsType[*Refusal](err); ok && len(r.Roots) > 0 {
		e.Anchor = anchors(r.Roots, e.Chain)
	}
	return e, h.start
}

// LogHook logs failed handshakes, in one record each. A nil logger is
// slog.Default().
func LogHook(logger *slog.Logger) Hook {
	if logger == nil {
		logger = slog.Default()
	}
	return func(ctx context.Context, event *Event) {
		if event.Err != nil {
			logFailure(ctx, logger, event.Err)
		}
	}
}

// logFailure: what every open port sees all day is no warning.
func logFailure(ctx context.Context, logger *slog.Logger, e *Error) {
	level := slog.LevelWarn
	switch e.Cause {
	case Closed, Timeout, Canceled, NotTLS:
		level = slog.LevelInfo
	}
	if logger.Enabled(ctx, level) {
		logger.LogAttrs(ctx, level, "TLS handshake failed", e.LogValue().Group()...)
	}
}

// textAddr is an address as net/http printed it.
type textAddr string

func (textAddr) Network() string  { return "tcp" }
func (a textAddr) String() string { return string(a) }

// textError is an error of which only the text is left.
type textError string

func (e textError) Error() string { return string(e) }

func cut(s string, limit int) string {
	if len(s) > limit {
		s = s[:limit] + "…"
	}
	return strings.Clone(s)
}
