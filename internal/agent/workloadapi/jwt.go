package workloadapi

import (
	"context"
	"slices"

	nodev1 "github.com/legation-io/legation/api/node/v1"
	"github.com/legation-io/legation/internal/fault"
	pb "github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/protobuf/types/known/structpb"
)

const (
	maxAudiences     = 32
	maxAudienceBytes = 2048 // of one
	maxID            = 2048 // bytes of a SPIFFE ID (SPIFFE-ID 2.3)
)

// FetchJWTSVID returns a JWT-SVID for the audience for each identity the
// caller has a right to, or for the one it names.
func (s *Server) FetchJWTSVID(ctx context.Context, r *pb.JWTSVIDRequest) (*pb.JWTSVIDResponse, error) {
	resp, err := s.fetchJWTSVID(ctx, r)
	return resp, s.answer(ctx, pb.SpiffeWorkloadAPI_FetchJWTSVID_FullMethodName, err)
}

func (s *Server) fetchJWTSVID(ctx context.Context, r *pb.JWTSVIDRequest) (*pb.JWTSVIDResponse, error) {
	c, err := s.enter(ctx)
	if err != nil {
		return nil, err
	}
	defer c.leave()
	if err := checkAudience(r.Audience); err != nil {
		return nil, err
	}
	entries, err := c.entries(r.SpiffeId)
	if err != nil {
		return nil, err
	}
	resp := &pb.JWTSVIDResponse{}
	var refused error
	for _, e := range entries {
		token, _, err := s.p.Manager.JWT(c.ctx, e, s.p.Instance(c.caller), r.Audience, nil)
		if err != nil {
			if refused == nil {
				refused = err
			}
			continue // the others are good
		}
		resp.Svids = append(resp.Svids, &pb.JWTSVID{SpiffeId: e.SpiffeId, Svid: token, Hint: e.Hint})
	}
	if len(resp.Svids) == 0 {
		return nil, refused
	}
	if err := c.same(); err != nil {
		return nil, err
	}
	return resp, nil
}

// entries are those that give the caller the identity it names; all of its
// own, the default one first, where it names none. There is at least one.
func (c *call) entries(spiffeID string) ([]*nodev1.Entry, error) {
	if len(spiffeID) > maxID {
		return nil, fault.New(fault.Invalid, "spiffe_id has %d bytes; a SPIFFE ID has at most %d", len(spiffeID), maxID)
	}
	if spiffeID != "" {
		if _, err := spiffeid.FromString(spiffeID); err != nil {
			return nil, fault.New(fault.Invalid, "spiffe_id %.300q is not a SPIFFE ID: %w", spiffeID, err)
		}
	}
	entries, err := c.s.p.Manager.WaitMatch(c.ctx, c.selectors)
	if err != nil || spiffeID == "" {
		return entries, err
	}
	entries = slices.DeleteFunc(slices.Clone(entries), func(e *nodev1.Entry) bool { return e.SpiffeId != spiffeID })
	if len(entries) == 0 {
		return nil, fault.New(fault.Denied, "this process has no right to %s; it has other identities, ask without spiffe_id for its own", spiffeID)
	}
	return entries, nil
}

func checkAudience(audience []string) error {
	if len(audience) == 0 {
		return fault.New(fault.Invalid, "audience must be specified: name at least one recipient of the token")
	}
	if len(audience) > maxAudiences {
		return fault.New(fault.Invalid, "%d audiences are asked for and at most %d are signed", len(audience), maxAudiences)
	}
	for _, a := range audience {
		if a == "" || len(a) > maxAudienceBytes {
			return fault.New(fault.Invalid, "an audience has %d bytes; it must have 1 to %d", len(a), maxAudienceBytes)
		}
	}
	return nil
}

// ValidateJWTSVID checks a token for the audience and returns its claims. It
// needs no identity: what it uses is public.
func (s *Server) ValidateJWTSVID(ctx context.Context, r *pb.ValidateJWTSVIDRequest) (*pb.ValidateJWTSVIDResponse, error) {
	resp, err := s.validateJWTSVID(ctx, r)
	return resp, s.answer(ctx, pb.SpiffeWorkloadAPI_ValidateJWTSVID_FullMethodName, err)
}

func (s *Server) validateJWTSVID(ctx context.Context, r *pb.ValidateJWTSVIDRequest) (*pb.ValidateJWTSVIDResponse, error) {
	c, err := s.enter(ctx)
	if err != nil {
		return nil, err
	}
	defer c.leave()
	if r.Audience == "" {
		return nil, fault.New(fault.Invalid, "audience must be specified")
	}
	if r.Svid == "" {
		return nil, fault.New(fault.Invalid, "svid must be specified")
	}
	trust, _ := s.p.Manager.Trust()
	token, err := s.tokens.Verify(s.keysOf(trust), r.Svid, r.Audience)
	if err != nil {
		return nil, fault.New(fault.Invalid, "the JWT-SVID is not valid: %w", err)
	}
	fields, err := structpb.NewStruct(token.Claims())
	if err != nil {
		return nil, fault.New(fault.Invalid, "the JWT-SVID is not valid: its claims: %w", err)
	}
	return &pb.ValidateJWTSVIDResponse{SpiffeId: token.ID.String(), Claims: fields}, nil
}
