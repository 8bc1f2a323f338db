package acmecert

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"time"

	"github.com/mholt/acmez/v3"

	"github.com/legation-io/legation/sdk/identity"
)

const challengePath = "/.well-known/acme-challenge/"

// GetCertificate answers a handshake as tls.Config.GetCertificate does: with
// the certificate of the name that the client asks for, or with the first
// domain's when it names none, and the CA's TLS-ALPN-01 questions. It neither
// locks nor allocates, except for those.
func (m *Manager) GetCertificate(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
	if len(hello.SupportedProtos) == 1 && hello.SupportedProtos[0] == acmez.ACMETLS1Protocol {
		return m.answerALPN(hello)
	}
	shown := m.shown.Load().byName
	name := hello.ServerName
	if name == "" {
		name = m.config.Domains[0]
	}
	if c := lookUp(shown, name); c != nil {
		return c, nil
	}
	if c := lookUp(shown, strings.ToLower(strings.TrimSuffix(name, "."))); c != nil {
		return c, nil
	}
	return nil, m.none(name)
}

// PublicCertificate is GetCertificate for a server that has another identity
// too, such as mtls.ServerConfig.Certificate: a client that asks for none of
// Config.Domains, or names no server, gets nil and no error, so that the other
// one is presented.
func (m *Manager) PublicCertificate(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
	if hello.ServerName == "" || m.domainOf(hello.ServerName) == "" {
		return nil, nil
	}
	return m.GetCertificate(hello)
}

// domainOf is which of Config.Domains a server name is of; "" for none.
func (m *Manager) domainOf(name string) string {
	name = strings.ToLower(strings.TrimSuffix(name, "."))
	for _, d := range m.config.Domains {
		if d == name {
			return d
		}
	}
	for _, d := range m.config.Domains {
		if covers(d, name) {
			return d
		}
	}
	return ""
}

// covers says whether a wildcard is for a name (RFC 6125 6.4.3).
func covers(wildcard, name string) bool {
	suffix, ok := strings.CutPrefix(wildcard, "*")
	if !ok {
		return false
	}
	first, ok := strings.CutSuffix(name, suffix)
	return ok && first != "" && !strings.Contains(first, ".")
}

func lookUp(shown map[string]*tls.Certificate, name string) *tls.Certificate {
	if c := shown[name]; c != nil {
		return c
	}
	for wildcard, c := range shown { // few, where there are any
		if covers(wildcard, name) {
			return c
		}
	}
	return nil
}

// none says why there is no certificate of a name: an *identity.NotReady while
// one is to come, so that sdk/handshake tells the cause.
func (m *Manager) none(name string) error {
	if d := m.domains[m.domainOf(name)]; d != nil {
		m.mu.Lock()
		defer m.mu.Unlock()
		return fmt.Errorf("acmecert: %s: %w", d.name, &identity.NotReady{Source: "a certificate from " + m.config.Directory, Err: d.err})
	}
	return fmt.Errorf("acmecert: no certificate of %q: it is not one of Config.Domains", clean(name))
}

func (m *Manager) answerALPN(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
	if !m.config.allows(TLSALPN01) {
		return nil, errors.New("acmecert: a TLS-ALPN-01 question, and this challenge is not in Config.Challenges")
	}
	ctx := hello.Context()
	if ctx == nil { // a hello that is none of crypto/tls
		ctx = context.Background()
	}
	p, err := m.challenges.find(ctx, TLSALPN01, strings.ToLower(hello.ServerName))
	if err != nil {
		return nil, fmt.Errorf("acmecert: a TLS-ALPN-01 question for %q: %w", clean(hello.ServerName), err)
	}
	return p.certificate, nil
}

// TLSConfig returns a configuration for a public HTTPS server: TLS 1.2 and
// later, HTTP/2 and HTTP/1.1, no session tickets, no client certificates. It
// may be changed before it is used, but NextProtos must keep "acme-tls/1" for
// TLS-ALPN-01. There is none for clients: a certificate of a public CA
// authenticates servers only.
func (m *Manager) TLSConfig() *tls.Config {
	c := &tls.Config{
		MinVersion: tls.VersionTLS12, GetCertificate: m.GetCertificate, SessionTicketsDisabled: true,
		NextProtos: []string{"h2", "http/1.1"},
	}
	if m.config.allows(TLSALPN01) {
		c.NextProtos = append(c.NextProtos, acmez.ACMETLS1Protocol)
	}
	return c
}

// HTTPHandler answers HTTP-01 (RFC 8555 8.3) under
// /.well-known/acme-challenge/ and leaves everything else to next; nil
// redirects it to https. Put it where port 80 arrives, or mount it under that
// path in a mux.
func (m *Manager) HTTPHandler(next http.Handler) http.Handler {
	if next == nil {
		next = http.HandlerFunc(m.redirect)
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked, ok := strings.CutPrefix(r.URL.Path, challengePath)
		if !ok || !m.config.allows(HTTP01) {
			next.ServeHTTP(w, r)
			return
		}
		m.answerHTTP(w, r, asked)
	})
}

// answerHTTP never forms a path, a name of a stored value or an answer from
// what was asked: that only has to equal the token that waits for the domain.
func (m *Manager) answerHTTP(w http.ResponseWriter, r *http.Request, asked string) {
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		http.Error(w, "only GET", http.StatusMethodNotAllowed)
		return
	}
	if !token(asked) || r.URL.RawPath != "" || r.URL.RawQuery != "" {
		http.Error(w, "not an ACME challenge token (RFC 8555 8.3)", http.StatusBadRequest)
		return
	}
	p, err := m.challenges.find(r.Context(), HTTP01, hostOf(r.Host))
	if err != nil || p.Token != asked {
		if err != nil && !errors.Is(err, errNoChallenge) {
			m.log.Warn("a challenge cannot be looked up", "domain", clean(r.Host), "error", err)
		}
		http.Error(w, "no challenge with this token waits for this name", http.StatusNotFound)
		return
	}
	w.Header().Set("Content-Type", "application/octet-stream")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	w.Header().Set("Connection", "close")
	io.WriteString(w, p.KeyAuthorization)
}

func hostOf(host string) string {
	if h, _, err := net.SplitHostPort(host); err == nil {
		host = h
	}
	return strings.ToLower(strings.TrimSuffix(host, "."))
}

// redirect sends those who ask for one of the domains to https.
func (m *Manager) redirect(w http.ResponseWriter, r *http.Request) {
	if r.URL.Opaque != "" || !strings.HasPrefix(r.URL.Path, "/") { // it would become a part of the host
		http.Error(w, "not a path", http.StatusBadRequest)
		return
	}
	host := hostOf(r.Host)
	if lookUp(m.shown.Load().byName, host) == nil {
		http.Error(w, "no such host here", http.StatusNotFound)
		return
	}
	http.Redirect(w, r, "https://"+host+r.URL.RequestURI(), http.StatusPermanentRedirect)
}

// ServeHTTP01 serves HTTPHandler(nil) on a listener of its own until ctx
// ends, for programs that serve nothing else at port 80. It closes the
// listener and returns when every connection has ended.
func (m *Manager) ServeHTTP01(ctx context.Context, l net.Listener) error {
	server := &http.Server{
		Handler: m.HTTPHandler(nil), ReadTimeout: 10 * time.Second, WriteTimeout: 15 * time.Second,
		IdleTimeout: 10 * time.Second, MaxHeaderBytes: 16 << 10, ErrorLog: quiet(m.log),
	}
	return serveUntil(ctx, server, l)
}

// ServeTLSALPN01 answers TLS-ALPN-01 on a listener of its own until ctx ends,
// for programs whose TLS is ended elsewhere: handshakes, and no data after
// them. It closes the listener and returns when every connection has ended.
func (m *Manager) ServeTLSALPN01(ctx context.Context, l net.Listener) error {
	config := &tls.Config{
		MinVersion: tls.VersionTLS12, NextProtos: []string{acmez.ACMETLS1Protocol}, SessionTicketsDisabled: true,
		GetCertificate: func(hello *tls.ClientHelloInfo) (*tls.Certificate, error) { return m.answerALPN(hello) },
	}
	server := &http.Server{
		Handler: http.NotFoundHandler(), TLSConfig: config, ReadTimeout: 10 * time.Second, WriteTimeout: 10 * time.Second, ErrorLog: quiet(m.log),
		TLSNextProto: map[string]func(*http.Server, *tls.Conn, http.Handler){
			acmez.ACMETLS1Protocol: func(_ *http.Server, c *tls.Conn, _ http.Handler) { c.Close() }, // RFC 8737 3: no data
		},
	}
	return serveUntil(ctx, server, tls.NewListener(l, config))
}

func serveUntil(ctx context.Context, server *http.Server, l net.Listener) error {
	ended := make(chan error, 1)
	go func() { ended <- server.Serve(l) }()
	select {
	case err := <-ended:
		return fmt.Errorf("acmecert: serve challenges at %s: %w", l.Addr(), err)
	case <-ctx.Done():
	}
	grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
	defer cancel()
	if server.Shutdown(grace) != nil {
		server.Close()
	}
	<-ended
	return nil
}
