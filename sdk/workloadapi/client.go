package workloadapi

import (
	"context"
	"errors"
	"fmt"

	"github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/jwtsvid"
	"google.golang.org/grpc"
)

// Client asks the Workload API one question at a time; a Source or JWTSource
// is for what should stay current. It is safe for concurrent use.
type Client struct {
	conn *grpc.ClientConn
	api  workload.SpiffeWorkloadAPIClient
}

// NewClient returns a client of the Workload API at addr; empty takes
// SPIFFE_ENDPOINT_SOCKET. Nothing is connected before the first question.
func NewClient(addr string) (*Client, error) {
	conn, err := Dial(addr)
	if err != nil {
		return nil, err
	}
	return &Client{conn: conn, api: workload.NewSpiffeWorkloadAPIClient(conn)}, nil
}

// Close ends the connection and what is open on it.
func (c *Client) Close() error { return c.conn.Close() }

// Conn is the connection, for the services of legation.workload.v1. It is
// closed by Close.
func (c *Client) Conn() *grpc.ClientConn { return c.conn }

// FetchX509Context returns the identities that this process has now. Errors
// have gRPC codes: PermissionDenied when it has none, Unavailable without an
// agent; what makes no sense has none.
func (c *Client) FetchX509Context(ctx context.Context) (*Context, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := c.api.FetchX509SVID(ctx, &workload.X509SVIDRequest{})
	if err != nil {
		return nil, fmt.Errorf("fetch X.509-SVIDs: %w", err)
	}
	r, err := stream.Recv()
	if err != nil {
		return nil, fmt.Errorf("fetch X.509-SVIDs: %w", err)
	}
	answer, err := parse(r)
	if err != nil {
		return nil, fmt.Errorf("fetch X.509-SVIDs: %w", err)
	}
	return answer, nil
}

// FetchJWTSVID returns a JWT-SVID for an audience, of the identity that
// params.Subject names; zero takes the default one. Its signature is the
// agent's business: who receives it verifies (sdk/jwtcheck). Errors have gRPC
// codes, as above.
func (c *Client) FetchJWTSVID(ctx context.Context, params jwtsvid.Params) (*jwtsvid.SVID, error) {
	all, err := c.FetchJWTSVIDs(ctx, params)
	if err != nil {
		return nil, err
	}
	return all[0], nil
}

// FetchJWTSVIDs returns one JWT-SVID for each of this process's identities, or
// that of params.Subject; at least one, the default first.
func (c *Client) FetchJWTSVIDs(ctx context.Context, params jwtsvid.Params) ([]*jwtsvid.SVID, error) {
	audience := append([]string{params.Audience}, params.ExtraAudiences...)
	request := &workload.JWTSVIDRequest{Audience: audience}
	if !params.Subject.IsZero() {
		request.SpiffeId = params.Subject.String()
	}
	r, err := c.api.FetchJWTSVID(ctx, request)
	if err != nil {
		return nil, fmt.Errorf("fetch a JWT-SVID for %q: %w", audience, err)
	}
	all, err := parseJWTSVIDs(r, audience, params.Subject)
	if err != nil {
		return nil, fmt.Errorf("fetch a JWT-SVID for %q: %w", audience, err)
	}
	return all, nil
}

func parseJWTSVIDs(r *workload.JWTSVIDResponse, audience []string, subject spiffeid.ID) ([]*jwtsvid.SVID, error) {
	if len(r.GetSvids()) == 0 {
		return nil, errors.New("the answer has no JWT-SVID")
	}
	var all []*jwtsvid.SVID
	for n, item := range r.GetSvids() {
		svid, err := jwtsvid.ParseInsecure(item.GetSvid(), audience)
		switch {
		case err != nil:
			return nil, fmt.Errorf("JWT-SVID %d of the answer: %w", n, err)
		case svid.ID.String() != item.GetSpiffeId():
			return nil, fmt.Errorf("JWT-SVID %d of the answer is announced as %.300q and names %s", n, item.GetSpiffeId(), svid.ID)
		case !subject.IsZero() && svid.ID != subject:
			return nil, fmt.Errorf("JWT-SVID %d of the answer is of %s, and was asked for as %s", n, svid.ID, subject)
		}
		svid.Hint = item.GetHint()
		all = append(all, svid)
	}
	return all, nil
}

// ValidateJWTSVID has the agent verify a token for an audience; sdk/jwtcheck
// does the same in process, and faster.
func (c *Client) ValidateJWTSVID(ctx context.Context, token, audience string) (*jwtsvid.SVID, error) {
	r, err := c.api.ValidateJWTSVID(ctx, &workload.ValidateJWTSVIDRequest{Svid: token, Audience: audience})
	if err != nil {
		return nil, fmt.Errorf("validate a JWT-SVID for %q: %w", audience, err)
	}
	svid, err := jwtsvid.ParseInsecure(token, []string{audience})
	if err != nil {
		return nil, fmt.Errorf("validate a JWT-SVID for %q: %w", audience, err)
	}
	if svid.ID.String() != r.GetSpiffeId() {
		return nil, fmt.Errorf("validate a JWT-SVID for %q: the Workload API says it is of %.300q, and it names %s", audience, r.GetSpiffeId(), svid.ID)
	}
	return svid, nil
}
