package propagation

import (
	"errors"
	"net/http"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// Transport adds our token to each request, after those of the chain that the
// request's context has (requests of a handler go on with their caller's
// chain; Detached begins one). Identity headers that the program set or copied
// from elsewhere are removed. The request itself is not changed. base makes
// the connections, e.g. by sdk/mtls; nil is http.DefaultTransport. An error
// says what of the configuration is wrong; requests fail with an *Error, or
// with what Audience returned, before anything is sent.
func Transport(base http.RoundTripper, c Config) (http.RoundTripper, error) {
	if c.Audience == nil {
		return nil, errors.New("propagation.Config: Audience is not set: a token is for one workload, and nobody says which; see ToWorkload and ToHosts")
	}
	out, err := NewOutbound(c)
	if err != nil {
		return nil, err
	}
	if base == nil {
		base = http.DefaultTransport
	}
	return &transport{out, base, c.Audience}, nil
}

// ToWorkload is an Audience for a client of one service. Where the service
// redirects to another host, port or scheme is outside, and so is all after
// it.
func ToWorkload(id spiffeid.ID) func(*http.Request) (spiffeid.ID, error) {
	return func(r *http.Request) (spiffeid.ID, error) {
		for r.Response != nil { // http.Client was redirected here
			from := r.Response.Request
			if from == nil || from.URL.Host != r.URL.Host || from.URL.Scheme != r.URL.Scheme {
				return spiffeid.ID{}, nil
			}
			r = from
		}
		return id, nil
	}
}

// ToHosts is an Audience by the host of the URL, without its port; hosts that
// it does not have are outside.
func ToHosts(hosts map[string]spiffeid.ID) func(*http.Request) (spiffeid.ID, error) {
	return func(r *http.Request) (spiffeid.ID, error) { return hosts[r.URL.Hostname()], nil }
}

type transport struct {
	out      *Outbound
	base     http.RoundTripper
	audience func(*http.Request) (spiffeid.ID, error)
}

// RoundTrip implements http.RoundTripper.
func (t *transport) RoundTrip(r *http.Request) (*http.Response, error) {
	audience, err := t.audience(r)
	header := ""
	if err == nil && !audience.IsZero() {
		header, err = t.out.Header(r.Context(), audience)
	}
	if err != nil {
		if r.Body != nil {
			r.Body.Close() // as http.RoundTripper must
		}
		return nil, err
	}
	out := r.WithContext(r.Context())
	out.Header = r.Header.Clone()
	if out.Header == nil {
		out.Header = http.Header{}
	}
	Strip(out.Header)
	if header != "" {
		out.Header[canonicalWorkloadIdentity] = []string{header}
	}
	if baggage := t.out.Baggage(r.Context(), r.Header[canonicalBaggage], header != ""); baggage != "" {
		out.Header[canonicalBaggage] = []string{baggage}
	} else {
		delete(out.Header, canonicalBaggage)
	}
	return t.base.RoundTrip(out)
}

// CloseIdleConnections passes on what http.Client asks of its transport.
func (t *transport) CloseIdleConnections() {
	if c, ok := t.base.(interface{ CloseIdleConnections() }); ok {
		c.CloseIdleConnections()
	}
}
