package policy

import (
	"context"
	"net/http"
	"slices"

	"github.com/legation-io/legation/sdk/identity"
)

// Handler lets through to next what the policies allow. The peer is the one
// that sdk/mtls put into the request's context (Listener.Serve, ConnContext):
// that a connection is TLS and has a certificate proves nothing. A request
// without a peer, without a route, with a path that is not canonical, and
// one that is denied, gets 403 and nothing else; the log has the reason under
// the decision's id. What next gets is the same *http.Request that was
// decided on: put nothing between that rewrites the path, and no router
// behind it that cleans, decodes or folds it further.
func Handler(next http.Handler, e *Engine, routes *Routes) http.Handler {
	return &handler{next, e, routes}
}

type handler struct {
	next   http.Handler
	engine *Engine
	routes *Routes
}

func (h *handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	ctx := r.Context()
	in, route, err := h.routes.Input(r)
	if p, ok := identity.PeerFromContext(ctx); ok {
		in.Identity = p.ID
	}
	var d Decision
	if err != nil {
		d = h.engine.Refuse(err)
	} else {
		d = h.engine.Decide(ctx, &in)
	}
	h.engine.Record(ctx, newRecord(&in, route, r, d))
	if !d.Allowed {
		http.Error(w, "403 Forbidden", http.StatusForbidden)
		return
	}
	h.next.ServeHTTP(w, r.WithContext(ContextWithDecision(ctx, d)))
}

// maxLoggedMethod bounds what is logged of a method that no route has: it is
// the peer's word.
const maxLoggedMethod = 32

func newRecord(in *Input, route Route, r *http.Request, d Decision) Record {
	name := in.Resource.Name
	if slices.Contains(route.Mask, "name") {
		name = masked
	}
	return Record{Decision: d, Identity: in.Identity, Operation: in.Operation, Type: in.Resource.Type, Name: name,
		Method: r.Method[:min(len(r.Method), maxLoggedMethod)], Route: route.Pattern, Remote: r.RemoteAddr}
}

type decisionKey struct{}

// DecisionFromContext is the decision that let a request through; false where
// none was made.
func DecisionFromContext(ctx context.Context) (Decision, bool) {
	d, ok := ctx.Value(decisionKey{}).(Decision)
	return d, ok
}

// ContextWithDecision is for interceptors of other protocols.
func ContextWithDecision(ctx context.Context, d Decision) context.Context {
	return context.WithValue(ctx, decisionKey{}, d)
}
