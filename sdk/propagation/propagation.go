// Package propagation answers "who called, and through whom". Each program on
// the way of a request adds one JWT-SVID to it, signed by the authority for
// the next program alone and linked to the token before; the program that
// receives the request verifies all of them and knows the origin, every hop,
// and that none was forged, left out or moved.
//
// A server, behind sdk/mtls, and the calls that it makes on behalf of its
// callers; keys and tokens come from the agent's socket
// (package tokens below):
//
//	source, err := workloadapi.Open(ctx, workloadapi.Config{})
//	...
//	keys, err := workloadapi.OpenJWTSource(ctx, workloadapi.Config{})
//	...
//	config := propagation.Config{
//		Identity: source, Keys: keys, Tokens: tokens.New(keys.Client().Conn(), spiffeid.ID{}),
//		Audience: propagation.ToWorkload(orders), // whom the calls go to
//	}
//	handler, err := propagation.Server(mux, config)
//	...
//	transport, err := propagation.Transport(dialer.Transport(), config)
//	...
//	chain := propagation.FromContext(r.Context()) // in a handler
//	chain.Origin(), chain.Caller(), chain.Hops()
//	req, _ := http.NewRequestWithContext(r.Context(), ...) // goes on with the chain
//
// A caller that sent no token is a hop by its connection alone: it is known to
// this server, and no part of the chain that goes on. Config.RequireToken refuses
// such callers. Package grpcpropagation below is the same for gRPC.
//
// # On the wire
//
// One header, in HTTP and as gRPC metadata:
//
//	x-workload-identity: jwt:<token>[~<token>...]
//
// origin first, the caller's token last; with one hop it is a plain JWT-SVID
// that any library verifies. Token i has one audience, which is the subject of
// token i+1, and token i+1 has SHA-256 of token i in its claim
// ext["legation.prev"]; the last one's audience is the receiver and its
// subject the peer of the mTLS connection. Each token is signed by the
// authority of its subject's trust domain (JWT-SVID standard).
//
// Beside it a server always finds, and its program may read,
//
//	spiffe-id, workload-id: <SPIFFE ID of the peer of the connection>
//
// which are set from the verified certificate by the Envoy sidecar or by this
// package, so that a program sees the same headers on both paths. Whatever a
// client sends under these names, in any case, with underscores for dashes, as
// -bin metadata or as trailers, is removed, and so is x-forwarded-client-cert.
//
// W3C baggage passes within the mesh. Its members workload.origin and
// workload.caller are for logs and traces only: they are set from the verified
// chain and removed where they do not say the same as it.
//
// # What a chain proves, and what not
//
// Origin called the second hop, the second hop says that it called the third
// while it served that call, and so on; nobody else can say so in their place.
// A hop that is itself dishonest can leave its own callers out, as if it acted
// for itself, and can attach the chain of a call that it really did receive to
// a call that it makes on its own account, for as long as the tokens live (five
// minutes by default). So a chain narrows what a hop may do, by what its origin
// may do; it does not widen it.
//
// Who may do what is left to the program (sdk/policy), how the connection is
// verified to sdk/mtls, and single tokens to sdk/jwtcheck.
package propagation

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/legation-io/legation/sdk/identity"
	"github.com/legation-io/legation/sdk/jwtcheck"
)

// Mode says where a server stands.
type Mode int

// The modes.
const (
	// Mesh: every request comes over a connection whose peer sdk/mtls or
	// sdk/grpccreds verified; one without a verified peer is refused.
	Mesh Mode = iota
	// Edge: requests come from outside. Every identity header is removed, no
	// caller is known, and the chain of calls made from here begins here.
	Edge
	// Sidecar: requests come from the program's own Envoy over loopback or a
	// Unix socket, and the spiffe-id header is believed. That trusts every
	// process that can connect to the program's port: all that run in the same
	// network namespace (a pod; without namespaces the whole machine). What
	// another such process writes into spiffe-id passes for the caller where
	// no token comes with it; set RequireToken where that matters. A request
	// from any other address is refused. A port that a second proxy on the
	// machine forwards to must not be in this mode.
	Sidecar
)

// Limits of a chain.
const (
	DefaultMaxDepth = 8
	DefaultMaxBytes = 16 << 10
	mostDepth       = 32
	mostBytes       = 128 << 10
)

// Config is how identity is carried. One Config serves Server and Transport.
type Config struct {
	// Identity says who we are: tokens must be for us. Required, except in
	// mode Edge. A program that has no SVID of its own sets
	// identity.NewMemory(&identity.Snapshot{ID: ...}).
	Identity identity.Source

	// Mode says whom Server hears; the zero value is Mesh.
	Mode Mode
	// Keys are what Server verifies tokens with. Required, except in mode Edge.
	Keys jwtcheck.Source
	// TrustDomains are those whose workloads may be hops, besides our own. A
	// chain with a hop of any other is refused.
	TrustDomains []spiffeid.TrustDomain
	// RequireToken refuses requests without tokens: callers that are known by
	// their connection alone.
	RequireToken bool
	// MaxDepth is the most hops of a chain; 0 is 8, at most 32.
	MaxDepth int
	// MaxBytes is the longest header, in both directions; 0 is 16 KiB, at most
	// 128 KiB. A hop is about 700 bytes.
	MaxBytes int
	// BaggageFromOutside names the baggage members that mode Edge lets in;
	// the others are removed.
	BaggageFromOutside []string

	// Tokens signs; required by Transport.
	Tokens TokenSource
	// Audience says which workload a request goes to: the SPIFFE ID that its
	// server presents. Required by Transport. The zero ID is for servers
	// outside: nothing that names identities goes with the request. An error
	// fails the request.
	Audience func(*http.Request) (spiffeid.ID, error)
	// Ext are further claims of our tokens: names [a-z0-9_.-]{1,64}, at most
	// 15, values at most 4,000 bytes together, names that begin with
	// "legation." excepted. Ignored where the authority cannot sign them.
	Ext map[string]string
	// TokenTimeout bounds how long a call waits for its token; 0 is 5 s. The
	// call that asks does so for all that wait with it, and is held until then
	// even where its own context ends before.
	TokenTimeout time.Duration
	// MaxTokens bounds the tokens that Transport holds, one for each audience
	// and incoming chain; 0 is 4,096.
	MaxTokens int

	// OnRefused is told of each refused request, before it is answered. It
	// must not block. May be nil.
	OnRefused func(context.Context, *Error)
	// Now is wall time; nil is time.Now.
	Now func() time.Time
	// Logger is told of refusals (Debug) and, once, that the chain cannot be
	// continued here (Warn); nil is slog.Default().
	Logger *slog.Logger
	// Registerer gets legation_propagation_requests_total{result} and
	// legation_propagation_tokens_total{result}; nil does without.
	Registerer prometheus.Registerer
}

// common checks and completes what both directions need.
func (c *Config) common() error {
	var wrong []string
	if c.MaxDepth == 0 {
		c.MaxDepth = DefaultMaxDepth
	}
	if c.MaxBytes == 0 {
		c.MaxBytes = DefaultMaxBytes
	}
	if c.MaxDepth < 1 || c.MaxDepth > mostDepth {
		wrong = append(wrong, fmt.Sprintf("MaxDepth is %d, want 1 to %d", c.MaxDepth, mostDepth))
	}
	if c.MaxBytes < 1024 || c.MaxBytes > mostBytes {
		wrong = append(wrong, fmt.Sprintf("MaxBytes is %d, want 1,024 to %d", c.MaxBytes, mostBytes))
	}
	if c.Mode < Mesh || c.Mode > Sidecar {
		wrong = append(wrong, fmt.Sprintf("Mode is %d, want Mesh, Edge or Sidecar", c.Mode))
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.Logger == nil {
		c.Logger = slog.Default()
	}
	if len(wrong) > 0 {
		return fmt.Errorf("propagation.Config: %s", strings.Join(wrong, "; "))
	}
	return nil
}

// Chain is who called. The zero Chain is of a request whose caller is not
// known. It never changes.
type Chain struct{ c *chain }

type chain struct {
	peer   spiffeid.ID       // of the connection
	tokens []*jwtcheck.Token // origin first; may be empty
	wire   string            // the tokens, joined
}

// Hop is one workload on the way.
type Hop struct {
	ID spiffeid.ID
	// Proof is how ID is known.
	Proof Proof
	// Audience is whom it called.
	Audience spiffeid.ID
	// Cluster and WorkloadName are what the authority says about it, empty
	// where it says nothing.
	Cluster, WorkloadName string
	// Ext are the further claims of its token; may be nil.
	Ext map[string]string
	// IssuedAt and ExpiresAt are the token's; zero with ByConnection.
	IssuedAt, ExpiresAt time.Time
}

// Proof is how a hop is known.
type Proof string

// The proofs.
const (
	// ByToken: it presented or passed on a JWT-SVID.
	ByToken Proof = "token"
	// ByConnection: it is the peer of the connection and sent no token, so
	// that nothing is known about whoever may have called it.
	ByConnection Proof = "connection"
)

// IsZero reports that nobody is known.
func (c Chain) IsZero() bool { return c.c == nil }

// Caller is the workload that called us, the peer of the connection.
func (c Chain) Caller() spiffeid.ID {
	if c.c == nil {
		return spiffeid.ID{}
	}
	return c.c.peer
}

// Origin is the first workload that is known: the caller itself, if it called
// on nobody's behalf.
func (c Chain) Origin() spiffeid.ID {
	if c.c == nil {
		return spiffeid.ID{}
	}
	if len(c.c.tokens) > 0 {
		return c.c.tokens[0].ID
	}
	return c.c.peer
}

// Len is the number of hops.
func (c Chain) Len() int {
	switch {
	case c.c == nil:
		return 0
	case len(c.c.tokens) == 0:
		return 1
	}
	return len(c.c.tokens)
}

// Hops are the workloads on the way, origin first, caller last; the slice is
// the caller's.
func (c Chain) Hops() []Hop {
	if c.c == nil {
		return nil
	}
	if len(c.c.tokens) == 0 {
		return []Hop{{ID: c.c.peer, Proof: ByConnection}}
	}
	hops := make([]Hop, len(c.c.tokens))
	for i, t := range c.c.tokens {
		hops[i] = Hop{ID: t.ID, Proof: ByToken, IssuedAt: t.IssuedAt, ExpiresAt: t.ExpiresAt, Ext: publicExt(t)}
		hops[i].Audience, _ = spiffeid.FromString(t.Audience[0])
		hops[i].Cluster = text(t, "cluster")
		hops[i].WorkloadName = text(t, "workload_name")
	}
	return hops
}

// Through reports whether a workload is one of the hops.
func (c Chain) Through(id spiffeid.ID) bool {
	if c.c == nil {
		return false
	}
	return c.c.peer == id || slices.ContainsFunc(c.c.tokens, func(t *jwtcheck.Token) bool { return t.ID == id })
}

// ExpiresAt is when the first of its tokens expires and the chain can no
// longer be passed on; zero when it has none.
func (c Chain) ExpiresAt() time.Time {
	var first time.Time
	if c.c != nil {
		for _, t := range c.c.tokens {
			if first.IsZero() || t.ExpiresAt.Before(first) {
				first = t.ExpiresAt
			}
		}
	}
	return first
}

// String is the hops in words.
func (c Chain) String() string {
	if c.c == nil {
		return "nobody"
	}
	if len(c.c.tokens) == 0 {
		return c.c.peer.String()
	}
	ids := make([]string, len(c.c.tokens))
	for i, t := range c.c.tokens {
		ids[i] = t.ID.String()
	}
	return strings.Join(ids, " > ")
}

type chainKey struct{}

// FromContext returns who called; the zero Chain where Server did not run, and
// in mode Edge.
func FromContext(ctx context.Context) Chain {
	c, _ := ctx.Value(chainKey{}).(Chain)
	return c
}

// NewContext returns a context that carries a chain, for work that goes on
// after its request.
func NewContext(ctx context.Context, c Chain) context.Context {
	return context.WithValue(ctx, chainKey{}, c)
}

// Detached returns a context of calls that are made on nobody's behalf: their
// chain begins here.
func Detached(ctx context.Context) context.Context { return NewContext(ctx, Chain{}) }

// text is a claim that is text.
func text(t *jwtcheck.Token, name string) string {
	v, _ := t.Claim(name)
	s, _ := v.(string)
	return s
}

// ext is one further claim.
func ext(t *jwtcheck.Token, name string) string {
	v, _ := t.Claim("ext")
	m, _ := v.(map[string]any)
	s, _ := m[name].(string)
	return s
}

// reservedExt is what names of our own begin with.
const reservedExt = "legation."

func publicExt(t *jwtcheck.Token) map[string]string {
	v, _ := t.Claim("ext")
	m, _ := v.(map[string]any)
	var out map[string]string
	for name, value := range m {
		if s, ok := value.(string); ok && !strings.HasPrefix(name, reservedExt) {
			if out == nil {
				out = make(map[string]string, len(m))
			}
			out[name] = s
		}
	}
	return out
}
