package propagation

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/legation-io/legation/sdk/identity"
	"github.com/legation-io/legation/sdk/jwtcheck"
)

const (
	scheme    = "jwt:"
	separator = "~" // in neither base64url nor a token's dots
	// extPrev is the further claim that links a token to the one before it.
	extPrev = reservedExt + "prev"
)

// link names a token in the next one.
func link(sum [sha256.Size]byte) string { return base64.RawURLEncoding.EncodeToString(sum[:]) }

// links reports whether a token names the one before it.
func links(t *jwtcheck.Token, before [sha256.Size]byte) bool {
	var text [43]byte
	base64.RawURLEncoding.Encode(text[:], before[:])
	return ext(t, extPrev) == string(text[:])
}

// Inbound judges the identity that comes with requests. It is what Server and
// grpcpropagation are made of, for further protocols.
type Inbound struct {
	config   Config
	verifier *jwtcheck.Verifier
	metrics  *metrics
}

// NewInbound checks a configuration as Server does.
func NewInbound(c Config) (*Inbound, error) {
	if err := c.common(); err != nil {
		return nil, err
	}
	if c.Mode != Edge && c.Identity == nil {
		return nil, errors.New("propagation.Config: Identity is not set: nobody can say whom tokens must be for; use sdk/workloadapi's Source, or identity.NewMemory")
	}
	if c.Mode != Edge && c.Keys == nil {
		return nil, errors.New("propagation.Config: Keys is not set: no token could be verified; use sdk/workloadapi's OpenJWTSource")
	}
	m, err := newMetrics(c.Registerer)
	if err != nil {
		return nil, fmt.Errorf("propagation.Config: Registerer: %w", err)
	}
	return &Inbound{
		config:   c,
		verifier: jwtcheck.New(jwtcheck.Config{MaxBytes: c.MaxBytes, Now: c.Now}),
		metrics:  m,
	}, nil
}

// Mode is the configuration's.
func (in *Inbound) Mode() Mode { return in.config.Mode }

// Received is what came with one request.
type Received struct {
	// Peer is who the connection was verified to be from; zero without one.
	Peer identity.Peer
	// Tokens, SPIFFEID and WorkloadID are all values of the headers of these
	// names, each as it came.
	Tokens, SPIFFEID, WorkloadID []string
	// Local and Remote are the connection's ends; mode Sidecar looks at them.
	Local, Remote net.Addr
}

// Accept verifies who called. The error is always an *Error.
func (in *Inbound) Accept(r Received) (Chain, error) {
	c, err := in.accept(r)
	if err != nil {
		in.metrics.request(string(err.Cause))
		return Chain{}, err
	}
	switch {
	case c.c == nil:
		in.metrics.request("edge")
	case len(c.c.tokens) == 0:
		in.metrics.request("connection")
	default:
		in.metrics.chain.Inc()
	}
	return c, nil
}

func (in *Inbound) accept(r Received) (Chain, *Error) {
	if in.config.Mode == Edge {
		return Chain{}, nil
	}
	peer, err := in.peer(r)
	if err != nil {
		return Chain{}, err
	}
	self, _, notReady := in.config.Identity.Current()
	if notReady != nil || self == nil || self.ID.IsZero() {
		return Chain{}, refuse(NotReady, "this service has no identity of its own yet: %w", cmpErr(notReady))
	}
	if err := in.domain(self.ID, peer); err != nil {
		return Chain{}, err
	}
	if len(r.Tokens) == 0 {
		if in.config.RequireToken {
			return Chain{}, refuse(NoToken, "%s sent no %s header, and this service requires one; set its propagation.Transport", peer, HeaderWorkloadIdentity)
		}
		return Chain{&chain{peer: peer}}, nil
	}
	if len(r.Tokens) > 1 {
		return Chain{}, refuse(Malformed, "%d %s headers; one carries the whole chain", len(r.Tokens), HeaderWorkloadIdentity)
	}
	keys, noKeys := in.config.Keys.Keys()
	if noKeys != nil || keys == nil {
		return Chain{}, refuse(NotReady, "this service has no keys to verify tokens with yet: %w", cmpErr(noKeys))
	}
	c, err := in.verify(keys, r.Tokens[0], self.ID, peer)
	if err != nil {
		return Chain{}, err
	}
	return Chain{c}, nil
}

var errNothing = errors.New("nothing has come yet")

func cmpErr(err error) error {
	if err == nil {
		return errNothing
	}
	return err
}

// peer is who the request is from.
func (in *Inbound) peer(r Received) (spiffeid.ID, *Error) {
	if in.config.Mode == Mesh {
		if r.Peer.ID.IsZero() {
			return spiffeid.ID{}, refuse(NoPeer, "the connection has no verified peer; serve with sdk/mtls or sdk/grpccreds, or set the mode (Edge, Sidecar) that says where this server stands")
		}
		return r.Peer.ID, nil
	}
	if !beside(r.Local, r.Remote) {
		return spiffeid.ID{}, refuse(NoPeer, "the request came from %v, and identity headers are believed from the sidecar on loopback or a Unix socket only", r.Remote)
	}
	if len(r.SPIFFEID) != 1 {
		return spiffeid.ID{}, refuse(NoPeer, "%d %s headers, the sidecar sets one; is %s on for this port?", len(r.SPIFFEID), HeaderSPIFFEID, "legation.io/identity-headers")
	}
	id, err := spiffeid.FromString(r.SPIFFEID[0])
	if err != nil || id.Path() == "" {
		return spiffeid.ID{}, refuse(Malformed, "the %s header is no workload's SPIFFE ID", HeaderSPIFFEID)
	}
	if len(r.WorkloadID) != 1 || r.WorkloadID[0] != r.SPIFFEID[0] {
		return spiffeid.ID{}, refuse(Malformed, "the %s header does not say what %s says; the sidecar sets both", HeaderWorkloadID, HeaderSPIFFEID)
	}
	return id, nil
}

// beside reports a connection that cannot have left the machine.
func beside(local, remote net.Addr) bool {
	if _, ok := local.(*net.UnixAddr); ok {
		return true
	}
	l, ok := local.(*net.TCPAddr)
	if !ok || !l.IP.IsLoopback() {
		return false
	}
	r, ok := remote.(*net.TCPAddr)
	return ok && r.IP.IsLoopback()
}

func (in *Inbound) domain(self, id spiffeid.ID) *Error {
	if td := id.TrustDomain(); td != self.TrustDomain() && !slices.Contains(in.config.TrustDomains, td) {
		return refuse(OtherDomain, "hops of trust domain %q are not accepted here; add it to TrustDomains if they should be", td.Name())
	}
	return nil
}

// verify goes from the last token, which must be the peer's for us, to the
// first: each is for the workload whose token was verified before it.
func (in *Inbound) verify(keys *jwtcheck.Keys, raw string, self, peer spiffeid.ID) (*chain, *Error) {
	if len(raw) > in.config.MaxBytes {
		return nil, refuse(TooLarge, "the %s header has %d bytes, more than %d", HeaderWorkloadIdentity, len(raw), in.config.MaxBytes)
	}
	wire, ok := strings.CutPrefix(raw, scheme)
	if !ok {
		return nil, refuse(Malformed, "the %s header does not begin with %q", HeaderWorkloadIdentity, scheme)
	}
	n := strings.Count(wire, separator) + 1
	if n > in.config.MaxDepth {
		return nil, refuse(TooDeep, "the chain has %d hops, more than %d; do services call each other in a circle?", n, in.config.MaxDepth)
	}
	c := &chain{peer: peer, tokens: make([]*jwtcheck.Token, n), wire: wire}
	rest, audience := wire, self
	for i := n - 1; i >= 0; i-- {
		one := rest
		if at := strings.LastIndexByte(rest, separator[0]); at >= 0 {
			one, rest = rest[at+1:], rest[:at]
		}
		t, err := in.hop(keys, one, audience, self)
		switch {
		case err != nil:
		case i == n-1 && t.ID != peer:
			err = refuse(WrongPeer, "it is %s's and the connection is %s's: it was taken from somebody", t.ID, peer)
		case i < n-1 && ext(c.tokens[i+1], extPrev) == "":
			err = refuse(Unlinked, "hop %d (%s) did not sign that it acts for it", i+2, c.tokens[i+1].ID)
		case i < n-1 && !links(c.tokens[i+1], t.Sum):
			err = refuse(Unlinked, "hop %d (%s) signed that it acts for another token of a caller", i+2, c.tokens[i+1].ID)
		case i == 0 && ext(t, extPrev) != "":
			err = refuse(Truncated, "it acts for a caller whose token is missing")
		}
		if err != nil {
			if i < n-1 && err.Cause == NotForUs {
				err = refuse(WrongOrder, "it is not for hop %d (%s): %w", i+2, c.tokens[i+1].ID, err.Err)
			}
			err.Hop, err.Of, err.ID = i+1, n, in.verifier.Subject(one)
			return nil, err
		}
		c.tokens[i], audience = t, t.ID
	}
	return c, nil
}

// hop verifies one token by itself.
func (in *Inbound) hop(keys *jwtcheck.Keys, token string, audience, self spiffeid.ID) (*jwtcheck.Token, *Error) {
	t, err := in.verifier.Verify(keys, token, audience.String())
	var refused *jwtcheck.Error
	switch {
	case err == nil:
	case errors.As(err, &refused) && refused.Cause == jwtcheck.Expired:
		return nil, &Error{Cause: Expired, Err: err}
	case errors.As(err, &refused) && refused.Cause == jwtcheck.WrongAudience:
		return nil, &Error{Cause: NotForUs, Err: err}
	case errors.As(err, &refused) && refused.Cause == jwtcheck.Malformed:
		return nil, &Error{Cause: Malformed, Err: err}
	default:
		return nil, &Error{Cause: BadToken, Err: err}
	}
	if len(t.Audience) != 1 {
		// Any of several audiences could pass it on to the others (JWT-SVID 7.2).
		return nil, refuse(BadToken, "it has %d audiences; a hop's token is for the next hop alone", len(t.Audience))
	}
	if claimed, there := t.Claim("spiffe_id"); there && claimed != t.ID.String() {
		return nil, refuse(BadToken, "its claim spiffe_id is not its subject")
	}
	return t, in.domain(self, t.ID)
}

// refused tells whoever asked.
func (in *Inbound) refused(ctx context.Context, err *Error) {
	in.config.Logger.Debug("a request was refused", "cause", string(err.Cause), "hop", err.Hop, "error", err)
	if in.config.OnRefused != nil {
		in.config.OnRefused(ctx, err)
	}
}

// Refused tells the configuration's OnRefused and Logger of an error of
// Accept.
func (in *Inbound) Refused(ctx context.Context, err error) {
	var refused *Error
	if errors.As(err, &refused) {
		in.refused(ctx, refused)
	}
}
