package workloadapi

import (
	"cmp"
	"context"
	"maps"
	"slices"

	nodev1 "github.com/legation-io/legation/api/node/v1"
	workloadv1 "github.com/legation-io/legation/sdk/api/workload/v1"
	"google.golang.org/grpc"
)

// revocations is the service legation.workload.v1.Revocations: what was taken
// back, pushed before a CRL is parsed, and with the identities that a CRL
// cannot name.
type revocations struct {
	workloadv1.UnimplementedRevocationsServer
	s *Server
}

// Watch pushes the whole set to a caller that has a right to some identity,
// and again whenever it changes. What is revoked is no secret: whoever
// verifies a peer must know it.
func (r revocations) Watch(_ *workloadv1.WatchRevocationsRequest, stream grpc.ServerStreamingServer[workloadv1.RevocationSet]) error {
	ctx := stream.Context()
	return r.s.answer(ctx, workloadv1.Revocations_Watch_FullMethodName, r.s.pushRevocations(ctx, stream.Send))
}

func (s *Server) pushRevocations(ctx context.Context, send func(*workloadv1.RevocationSet) error) error {
	c, err := s.enter(ctx)
	if err != nil {
		return err
	}
	defer c.leave()
	defer c.bind()()
	if _, err := s.p.Manager.WaitMatch(c.ctx, c.selectors); err != nil {
		return c.because(err)
	}
	var last map[string]*nodev1.Revocation
	for {
		view, changed := s.p.Views.View()
		// A set that was not yet received is no set: an empty one would acquit.
		if view.Synced && (last == nil || !maps.Equal(last, view.Revocations)) {
			if err := c.same(); err != nil {
				return err
			}
			if err := send(s.revocationSet(view.Revocations)); err != nil {
				return err
			}
			if last = view.Revocations; last == nil {
				last = map[string]*nodev1.Revocation{}
			}
		}
		select {
		case <-changed:
		case <-c.ctx.Done():
			return c.because(c.ctx.Err())
		}
	}
}

// revocationSet is the message of one set, made once for all who watch.
func (s *Server) revocationSet(all map[string]*nodev1.Revocation) *workloadv1.RevocationSet {
	s.setMu.Lock()
	defer s.setMu.Unlock()
	if s.set == nil || !maps.Equal(s.setOf, all) {
		s.set, s.setOf = composeRevocations(all), all
	}
	return s.set
}

// composeRevocations keeps the order of time. An identity that was lifted is
// named no more; what was revoked of it before stays revoked by serial.
func composeRevocations(all map[string]*nodev1.Revocation) *workloadv1.RevocationSet {
	set := &workloadv1.RevocationSet{Revocations: make([]*workloadv1.Revocation, 0, len(all))}
	for _, r := range slices.SortedFunc(maps.Values(all), func(a, b *nodev1.Revocation) int {
		return cmp.Or(cmp.Compare(a.RevokedAtUnixNano, b.RevokedAtUnixNano), cmp.Compare(a.Id, b.Id))
	}) {
		told := &workloadv1.Revocation{Serials: r.Serials, Reason: r.Reason, RevokedAtUnixNano: r.RevokedAtUnixNano}
		if r.BlocksIssuance {
			told.SpiffeId = r.SpiffeId
		}
		if told.SpiffeId != "" || len(told.Serials) > 0 {
			set.Revocations = append(set.Revocations, told)
		}
	}
	return set
}
