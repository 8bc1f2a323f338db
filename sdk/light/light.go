// Package light answers "who am I, and whom do I believe" for programs that
// must have that within milliseconds of their start, or in few bytes: a
// client of the SPIFFE Workload API with no gRPC and no protobuf library in
// it. One write and one answer on the agent's socket, and the identity is
// there; Open keeps the stream for what changes, Fetch ends it. Both give the
// identity.Snapshot that sdk/mtls and this package's Dial take.
//
// It speaks as much HTTP/2 (RFC 9113), HPACK (RFC 7541) and gRPC as these
// calls need: bounded frames, headers and messages, both flow controls, PING,
// SETTINGS and GOAWAY. What it does not have: WIT- and JWT-SVIDs, TLS to the
// agent, other services. sdk/workloadapi has those; its Source behaves the
// same in every other respect.
//
// # Where the bytes come from
//
// The Workload API sends DER. With Config.SDS the same comes by Envoy's
// protocol, as PEM; that is for agents that offer nothing else, and costs a
// third more bytes (Source.Sizes says how many). SDS does not tell which
// trust domain a root belongs to: the own bundle is taken by its name, and
// others only where Config.SDS names them.
//
// # Private keys
//
// The socket is read into locked memory that is left out of core dumps
// (sdk/secretmem) and wiped as soon as a key is parsed; with SDS, the decoded
// PEM is on the heap for that long. What package crypto made of the key lies
// on the heap: secretmem.Harden keeps the process as a whole from being dumped
// and swapped.
//
// # TLS 1.2
//
// Peers too small for TLS 1.3 are reached with DialConstrained and
// ListenConstrained, which are TLS 1.2 and nothing else; see Constrained for
// what that costs. sdk/mtls, for everybody else, is TLS 1.3 only, save under
// its profile Constrained, which speaks both.
//
// Standards: SPIFFE Workload API 5, SPIFFE Workload Endpoint 3, 4 and 6; gRPC
// over HTTP/2; RFC 9113; RFC 7541; RFC 5246, 5289, 8422 and 9325 for TLS 1.2.
package light

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"net/url"
	"os"
	"strings"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"

	"github.com/legation-io/legation/sdk/identity"
	"github.com/legation-io/legation/sdk/internal/holder"
)

// Config is what Fetch and a Source need. The zero value takes
// SPIFFE_ENDPOINT_SOCKET and the default identity.
type Config struct {
	// Addr of the Workload API, "unix:///path" or "tcp://ip:port"; empty takes
	// SPIFFE_ENDPOINT_SOCKET.
	Addr string
	// SDS asks by Envoy's protocol instead of the Workload API; nil does not.
	SDS *SDS
	// SPIFFEID is the identity that this process must be; zero takes the one
	// that Pick chooses.
	SPIFFEID spiffeid.ID
	// Pick chooses when there are several; nil takes the first, which is the
	// default (SPIFFE Workload API 5.3). Nil from Pick is none of them.
	Pick func([]*x509svid.SVID) *x509svid.SVID
	// MaxMessage bounds one answer, in bytes; zero is 4 MiB. Revocation lists
	// of some 100,000 certificates need more.
	MaxMessage int
	// NoRevocations does not ask for legation.workload.v1.Revocations. A
	// socket that has none is served all the same.
	NoRevocations bool
	// Timeout bounds an attempt from its beginning to its first answer; zero
	// is 15 s. Agents hold a caller whose identity is just being made.
	Timeout time.Duration
	// Backoff bounds the waits between attempts of a Source.
	Backoff Backoff
	// Logger gets each change of a Source's state once, and every answer that
	// made no sense; nil is slog.Default().
	Logger *slog.Logger
	// Now is wall time; nil is time.Now.
	Now func() time.Time
}

// Backoff bounds the waits between attempts to reach the Workload API:
//
//	Min time.Duration // zero is 50 ms
//	Max time.Duration // zero is 10 s
//
// Each is a random time between Min and a ceiling that doubles, from five
// times Min up to Max, and starts again from the bottom after every answer.
type Backoff = holder.Backoff

const (
	defaultMaxMessage = 4 << 20
	defaultTimeout    = 15 * time.Second
	// awaitDenials is how long the first Snapshot waits for the deny set,
	// which was asked for in the same write.
	awaitDenials = 50 * time.Millisecond
)

func (c Config) withDefaults() (Config, error) {
	if c.Addr == "" {
		c.Addr = os.Getenv("SPIFFE_ENDPOINT_SOCKET")
	}
	if _, _, err := target(c.Addr); err != nil {
		return c, err
	}
	if !c.SPIFFEID.IsZero() && c.Pick != nil {
		return c, errors.New("SPIFFEID and Pick are both set: an identity is either named or chosen")
	}
	if c.MaxMessage < 0 || c.MaxMessage > 1<<30 {
		return c, fmt.Errorf("MaxMessage is %d; it must be between 1 and 1 GiB, zero is 4 MiB", c.MaxMessage)
	}
	if c.MaxMessage == 0 {
		c.MaxMessage = defaultMaxMessage
	}
	if c.Timeout <= 0 {
		c.Timeout = defaultTimeout
	}
	if c.Logger == nil {
		c.Logger = slog.Default()
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	return c, nil
}

func (c Config) name() string { return "the Workload API at " + c.Addr }

func (c Config) holder(log *slog.Logger) *holder.Holder {
	p := holder.Params{Name: c.name(), ID: c.SPIFFEID, Pick: c.Pick, Log: log, Now: c.Now}
	if !c.NoRevocations {
		p.AwaitDenials = awaitDenials
	}
	return holder.New(p)
}

// target reads an address, SPIFFE Workload Endpoint 4.
func target(addr string) (network, address string, err error) {
	if addr == "" {
		return "", "", errors.New("no Workload API address: give one or set SPIFFE_ENDPOINT_SOCKET, e.g. unix:///run/legation/agent.sock")
	}
	refuse := func(why string) (string, string, error) {
		return "", "", fmt.Errorf("workload API address %q: %s", addr, why)
	}
	u, err := url.Parse(addr)
	if err != nil {
		return refuse("it is no URI")
	}
	switch {
	case u.Scheme == "unix" && u.Opaque == "" && u.Host == "" && u.User == nil && strings.HasPrefix(u.Path, "/") && len(u.Path) > 1 && u.RawQuery == "" && u.Fragment == "":
		return "unix", u.Path, nil
	case u.Scheme == "unix":
		return refuse("a Unix socket is written unix:///absolute/path, with nothing else")
	case u.Scheme == "tcp" && u.Opaque == "" && u.User == nil && u.Path == "" && u.RawQuery == "" && u.Fragment == "":
		if _, err := netip.ParseAddrPort(u.Host); err != nil {
			return refuse("TCP is written tcp://ip:port, with an IP address")
		}
		return "tcp", u.Host, nil
	}
	return refuse("it is neither unix:///path nor tcp://ip:port")
}

// Fetch returns the identity that this process has now. It takes one
// connection, one write and one answer, and ends both: nothing is renewed. The
// error is a *StatusError where the Workload API says no (PermissionDenied:
// this process has no identity), a *ProtocolError where it is no gRPC server,
// or says why nobody answers.
func Fetch(ctx context.Context, c Config) (*identity.Snapshot, error) {
	snapshot, _, err := FetchSizes(ctx, c)
	return snapshot, err
}

// FetchSizes is Fetch that also says what the answer weighed.
func FetchSizes(ctx context.Context, c Config) (*identity.Snapshot, Sizes, error) {
	c, err := c.withDefaults()
	if err != nil {
		return nil, Sizes{}, err
	}
	fail := func(err error) (*identity.Snapshot, Sizes, error) {
		if ctx.Err() != nil {
			err = fmt.Errorf("%w: %w", context.Cause(ctx), err)
		}
		return nil, Sizes{}, fmt.Errorf("fetch an identity from %s: %w", c.name(), err)
	}
	ctx, cancel := context.WithTimeout(ctx, c.Timeout)
	defer cancel()
	var sizes Sizes
	s, err := open(ctx, &c, func(weight Sizes) { sizes = weight })
	if err != nil {
		return fail(err)
	}
	defer s.close()
	// Nobody watches a Holder that ends at once: what it would log is told.
	h := c.holder(slog.New(slog.DiscardHandler))
	for {
		snapshot, _, pending := h.Current()
		if pending == nil {
			return snapshot, sizes, nil
		}
		st := h.Status()
		if st.State == holder.NoIdentity || st.State == holder.Malformed {
			return fail(st.Err)
		}
		if st.Answers > 0 { // only the deny set is awaited
			_ = s.nc.SetReadDeadline(time.Now().Add(h.Check()))
		}
		if err := s.step(h); err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
			return fail(err)
		}
		h.Check()
	}
}
