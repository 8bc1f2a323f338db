// Package tokens answers "who signs our hop of a calling chain": the agent's
// socket, by the service legation.workload.v1.Tokens, which links the hop to
// its callers, or, on the socket of another implementation (SPIRE), by the
// Workload API, whose tokens are plain and begin a chain anew. It has no state
// of its own: package propagation remembers tokens, and the connection is
// sdk/workloadapi's.
package tokens

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/jwtsvid"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	workloadv1 "github.com/legation-io/legation/sdk/api/workload/v1"
	"github.com/legation-io/legation/sdk/propagation"
)

// Source is a propagation.TokenSource. It is for use by many goroutines.
type Source struct {
	tokens workloadv1.TokensClient
	api    workload.SpiffeWorkloadAPIClient
	id     spiffeid.ID
}

var _ propagation.TokenSource = (*Source)(nil)

// New returns a source that asks over a connection of workloadapi.Dial, which
// stays the caller's. The identity is whose tokens they are; the zero ID is
// the process's default identity.
func New(conn grpc.ClientConnInterface, id spiffeid.ID) *Source {
	return &Source{tokens: workloadv1.NewTokensClient(conn), api: workload.NewSpiffeWorkloadAPIClient(conn), id: id}
}

// Token returns a JWT-SVID for one audience. It is Plain where the socket does
// not know the service Tokens, or its control plane is too old for it. Errors
// have gRPC codes: PermissionDenied when the identity is not this process's,
// Unavailable without an agent.
func (s *Source) Token(ctx context.Context, audience spiffeid.ID, ext map[string]string) (propagation.Token, error) {
	request := &workloadv1.FetchJWTSVIDRequest{Audience: []string{audience.String()}, Ext: ext}
	if !s.id.IsZero() {
		request.SpiffeId = s.id.String()
	}
	r, err := s.tokens.FetchJWTSVID(ctx, request)
	if status.Code(err) == codes.Unimplemented {
		return s.plain(ctx, request)
	}
	if err != nil {
		return propagation.Token{}, fmt.Errorf("fetch a JWT-SVID for %s: %w", audience, err)
	}
	return s.check(r.GetToken(), request.Audience, false)
}

// plain asks as the SPIFFE Workload API 6.2.1 has it.
func (s *Source) plain(ctx context.Context, request *workloadv1.FetchJWTSVIDRequest) (propagation.Token, error) {
	r, err := s.api.FetchJWTSVID(ctx, &workload.JWTSVIDRequest{Audience: request.Audience, SpiffeId: request.SpiffeId})
	if err == nil && len(r.GetSvids()) == 0 {
		err = errors.New("the answer has no JWT-SVID")
	}
	if err != nil {
		return propagation.Token{}, fmt.Errorf("fetch a JWT-SVID for %s: %w", request.Audience[0], err)
	}
	return s.check(r.GetSvids()[0].GetSvid(), request.Audience, true)
}

// check makes sure that what came is what was asked for; its signature is for
// its receiver to verify.
func (s *Source) check(token string, audience []string, plain bool) (propagation.Token, error) {
	svid, err := jwtsvid.ParseInsecure(token, audience)
	if err == nil && !s.id.IsZero() && svid.ID != s.id {
		err = fmt.Errorf("it is of %s, and %s was asked for", svid.ID, s.id)
	}
	if err != nil {
		return propagation.Token{}, fmt.Errorf("the JWT-SVID that came for %s: %w", audience[0], err)
	}
	return propagation.Token{Text: token, ExpiresAt: svid.Expiry.Truncate(time.Second), Plain: plain}, nil
}
