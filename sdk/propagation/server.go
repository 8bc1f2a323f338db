package propagation

import (
	"io"
	"maps"
	"net"
	"net/http"
	"net/netip"
	"strings"

	"github.com/legation-io/legation/sdk/identity"
)

// Server verifies who called before a handler runs. The handler finds the
// Chain by FromContext, and the headers of identities as the package says: no
// other way to set them is left to a client. Requests that are refused are
// answered 400, 403 or 503 with the reason and do not reach the handler. An
// error says what of the configuration is wrong.
//
// In mode Mesh the handler is served by sdk/mtls, which puts the verified peer
// into the context (identity.PeerFromContext).
func Server(next http.Handler, c Config) (http.Handler, error) {
	in, err := NewInbound(c)
	if err != nil {
		return nil, err
	}
	return &server{in, next}, nil
}

type server struct {
	in   *Inbound
	next http.Handler
}

// ServeHTTP implements http.Handler.
func (s *server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	received := Received{Tokens: r.Header[canonicalWorkloadIdentity]}
	switch s.in.Mode() {
	case Mesh:
		received.Peer, _ = identity.PeerFromContext(r.Context())
	case Sidecar:
		received.SPIFFEID, received.WorkloadID = r.Header[canonicalSPIFFEID], r.Header[canonicalWorkloadID]
		received.Local, _ = r.Context().Value(http.LocalAddrContextKey).(net.Addr)
		received.Remote = remote(r.RemoteAddr)
	}
	chain, err := s.in.Accept(received)
	if err != nil {
		refused := err.(*Error) // Accept returns nothing else
		s.in.refused(r.Context(), refused)
		http.Error(w, refused.Error(), refused.Status())
		return
	}
	s.next.ServeHTTP(w, s.present(r, chain))
}

// present is the request as the handler sees it.
func (s *server) present(r *http.Request, c Chain) *http.Request {
	token := r.Header[canonicalWorkloadIdentity]
	out := r
	if !c.IsZero() {
		out = r.WithContext(NewContext(r.Context(), c))
	}
	headers, changed := stripped(r.Header)
	baggage, rewritten := s.in.baggageIn(r.Header[canonicalBaggage], c)
	connection, shortened := withoutOurs(r.Header["Connection"])
	if !c.IsZero() || changed || rewritten || shortened {
		if out == r {
			out = r.WithContext(r.Context())
		}
		if !changed {
			headers = maps.Clone(r.Header)
		}
		if !c.IsZero() {
			peer := []string{c.Caller().String()}
			headers[canonicalSPIFFEID], headers[canonicalWorkloadID] = peer, peer
			if len(token) == 1 {
				headers[canonicalWorkloadIdentity] = token
			}
		}
		switch {
		case rewritten && baggage == "":
			delete(headers, canonicalBaggage)
		case rewritten:
			headers[canonicalBaggage] = []string{baggage}
		}
		if shortened {
			headers["Connection"] = connection
		}
		out.Header = headers
	}
	if r.Body != nil && r.Body != http.NoBody && (r.ProtoMajor >= 2 || r.ContentLength < 0) {
		if out == r {
			out = r.WithContext(r.Context())
		}
		Strip(r.Trailer)
		out.Body = &trailerBody{r.Body, r, out}
	}
	return out
}

// withoutOurs leaves out the names of ours of a Connection header: a handler
// that is a proxy removes what is named there (RFC 9110 7.6.1), and no client
// has its own identity removed.
func withoutOurs(values []string) (kept []string, changed bool) {
	for _, v := range values {
		for name := range strings.SplitSeq(v, ",") {
			name = strings.Trim(name, " \t")
			if identityHeader(name) != "" {
				changed = true
			} else if name != "" {
				kept = append(kept, name)
			}
		}
	}
	return kept, changed
}

// trailerBody removes identities from the trailers that come after a body.
type trailerBody struct {
	io.ReadCloser
	from, to *http.Request
}

// Read implements io.Reader.
func (b *trailerBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	if err != nil {
		b.trailer()
	}
	return n, err
}

// Close implements io.Closer: net/http reads what was not read.
func (b *trailerBody) Close() error {
	err := b.ReadCloser.Close()
	b.trailer()
	return err
}

func (b *trailerBody) trailer() {
	Strip(b.from.Trailer)
	b.to.Trailer = b.from.Trailer
}

// remote parses http.Request.RemoteAddr.
func remote(s string) net.Addr {
	a, err := netip.ParseAddrPort(s)
	if err != nil {
		return nil
	}
	return net.TCPAddrFromAddrPort(a)
}
