package mtls

import (
	"net"
	"net/http"
	"net/http/httptrace"
	"sync/atomic"
	"time"
)

// ExplainTransport returns a transport whose errors are Explain's: a request
// fails with a *handshake.Error when the server refused our certificate, where
// that of Dialer.Transport has the alert alone. It goes directly around
// Dialer.Transport, and costs each request a copy of itself and a trace
// (net/http/httptrace).
func ExplainTransport(next http.RoundTripper) http.RoundTripper {
	return &explaining{next}
}

type explaining struct{ next http.RoundTripper }

// RoundTrip implements http.RoundTripper.
func (e *explaining) RoundTrip(r *http.Request) (*http.Response, error) {
	var used atomic.Pointer[net.Conn] // the last one that was tried
	traced := httptrace.WithClientTrace(r.Context(), &httptrace.ClientTrace{
		GotConn: func(got httptrace.GotConnInfo) { used.Store(&got.Conn) },
	})
	resp, err := e.next.RoundTrip(r.WithContext(traced))
	if err == nil {
		return resp, nil
	}
	c := used.Load()
	if c == nil || *c == nil {
		return resp, err
	}
	own, ok := ours(*c)
	if !ok {
		return resp, err
	}
	// HTTP/2 has words of its own for a connection that ended as it began, and
	// closes it a moment later, which is when the refusal is found.
	for wait := time.Microsecond; wait < longestWait && r.Context().Err() == nil; wait *= 2 {
		Explain(r.Context(), *c, err)
		if refused := own.attempt.Refused(); refused != nil {
			return resp, refused
		}
		time.Sleep(wait)
	}
	return resp, err
}

// longestWait is what all waits of a failed request together stay below.
const longestWait = 16 * time.Millisecond

// CloseIdleConnections is for http.Client.CloseIdleConnections.
func (e *explaining) CloseIdleConnections() {
	if c, ok := e.next.(interface{ CloseIdleConnections() }); ok {
		c.CloseIdleConnections()
	}
}
