package workloadapi

import (
	"context"
	"errors"
	"time"

	"github.com/legation-io/legation/internal/agent/svid"
	"github.com/legation-io/legation/internal/fault"
	workloadv1 "github.com/legation-io/legation/sdk/api/workload/v1"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// tokens is the service legation.workload.v1.Tokens: JWT-SVIDs with further
// claims, by which a program says on whose behalf it calls.
type tokens struct {
	workloadv1.UnimplementedTokensServer
	s *Server
}

// Bounds of a request (workload.proto). The authority checks what the names of
// claims may be.
const (
	maxTokenAudiences = 16
	maxExt            = 16
	maxExtBytes       = 4096
)

// FetchJWTSVID signs for one of the caller's own identities. Beside the codes
// of workload.proto, Unimplemented says that the control plane is too old to
// sign further claims; the Workload API's plain tokens are there then.
func (t tokens) FetchJWTSVID(ctx context.Context, r *workloadv1.FetchJWTSVIDRequest) (*workloadv1.FetchJWTSVIDResponse, error) {
	token, expires, err := t.s.fetchToken(ctx, r)
	if mapped := t.s.answer(ctx, workloadv1.Tokens_FetchJWTSVID_FullMethodName, err); mapped != nil {
		if errors.Is(err, svid.ErrPlain) {
			return nil, status.Error(codes.Unimplemented, err.Error())
		}
		return nil, mapped
	}
	return &workloadv1.FetchJWTSVIDResponse{Token: token, ExpiresAtUnix: expires.Unix()}, nil
}

func (s *Server) fetchToken(ctx context.Context, r *workloadv1.FetchJWTSVIDRequest) (string, time.Time, error) {
	none := time.Time{}
	c, err := s.enter(ctx)
	if err != nil {
		return "", none, err
	}
	defer c.leave()
	if err := checkAudience(r.GetAudience()); err != nil {
		return "", none, err
	}
	if n := len(r.GetAudience()); n > maxTokenAudiences {
		return "", none, fault.New(fault.Invalid, "%d audiences are asked for and at most %d are signed", n, maxTokenAudiences)
	}
	if err := checkExt(r.GetExt()); err != nil {
		return "", none, err
	}
	entries, err := c.entries(r.GetSpiffeId())
	if err != nil {
		return "", none, err
	}
	token, expires, err := s.p.Manager.JWT(c.ctx, entries[0], s.p.Instance(c.caller), r.GetAudience(), r.GetExt())
	if err != nil {
		return "", none, err
	}
	return token, expires, c.same()
}

func checkExt(ext map[string]string) error {
	size := 0
	for name, value := range ext {
		size += len(value)
		if len(name) > 64 {
			return fault.New(fault.Invalid, "the name of a further claim has %d bytes, at most 64 are signed", len(name))
		}
	}
	if len(ext) > maxExt || size > maxExtBytes {
		return fault.New(fault.Invalid, "%d further claims of %d bytes are asked for; at most %d of %d are signed", len(ext), size, maxExt, maxExtBytes)
	}
	return nil
}
