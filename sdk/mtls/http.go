package mtls

import (
	"context"
	"net"
	"net/http"

	"github.com/legation-io/legation/sdk/identity"
)

type connKey struct{}

// ConnContext is for http.Server.ConnContext: the requests of a connection of
// this package carry its verified peer, for identity.PeerFromContext. It costs
// a connection something and a request nothing. Other connections carry none.
func ConnContext(ctx context.Context, c net.Conn) context.Context {
	peer, ok := PeerOf(c)
	if !ok {
		return ctx
	}
	own, _ := ours(c)
	return context.WithValue(identity.ContextWithPeer(ctx, peer), connKey{}, own)
}

// Handler lets only requests with a verified peer through, so that a handler
// that is also mounted elsewhere (a public port, plaintext) is not reached
// without one: others are answered 403. The peer comes from ConnContext, which
// Listener.Serve sets. A request whose peer's certificate has expired since
// the handshake is served, and the client is asked to reconnect ("Connection:
// close"; HTTP/2: GOAWAY, RFC 9113 6.8).
func Handler(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		c, ok := r.Context().Value(connKey{}).(*conn)
		if !ok {
			http.Error(w, "no verified peer: this handler is served on mutual TLS only (its http.Server needs ConnContext: mtls.ConnContext)", http.StatusForbidden)
			return
		}
		if c.expired.Load() {
			w.Header().Set("Connection", "close")
		}
		next.ServeHTTP(w, r)
	})
}
