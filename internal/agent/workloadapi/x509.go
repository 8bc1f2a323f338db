package workloadapi

import (
	"context"
	"maps"
	"slices"
	"time"

	"github.com/legation-io/legation/internal/agent/svid"
	"github.com/legation-io/legation/internal/fault"
	pb "github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
)

// FetchX509SVID pushes the caller's SVIDs, with keys, bundles and CRLs, and
// all of them again whenever one changes.
func (s *Server) FetchX509SVID(_ *pb.X509SVIDRequest, stream pb.SpiffeWorkloadAPI_FetchX509SVIDServer) error {
	ctx := stream.Context()
	return s.answer(ctx, pb.SpiffeWorkloadAPI_FetchX509SVID_FullMethodName, s.fetchX509SVID(ctx, stream))
}

func (s *Server) fetchX509SVID(ctx context.Context, stream pb.SpiffeWorkloadAPI_FetchX509SVIDServer) error {
	begun := time.Now()
	c, err := s.enter(ctx)
	if err != nil {
		return err
	}
	defer c.leave()
	defer c.bind()()
	sub := s.p.Manager.Subscribe(c.selectors, s.p.Instance(c.caller))
	defer sub.Close()
	told := false
	defer func() {
		if told {
			s.p.OnGone(c.name)
		}
	}()
	for {
		update, err := sub.Next(c.ctx)
		if err != nil {
			return c.because(err)
		}
		if err := c.same(); err != nil {
			return err
		}
		if err := stream.Send(x509Response(update)); err != nil {
			return err
		}
		if !told {
			s.first.Observe(since(begun))
		}
		told = true
		for _, v := range update.SVIDs {
			sub.Served(v)
		}
		s.p.OnDelivered(c.name, update.SVIDs[0].ID.String(), update.Trust.CRLNumber)
	}
}

// because names the end of the process as the reason when it is.
func (c *call) because(err error) error {
	if c.ctx.Err() != nil && !c.caller.Alive() {
		return fault.New(fault.Denied, "the calling process (pid %d) ended", c.caller.PID())
	}
	return err
}

func x509Response(u *svid.Update) *pb.X509SVIDResponse {
	own := concat(u.Trust.Roots[u.Trust.TrustDomain])
	r := &pb.X509SVIDResponse{Svids: make([]*pb.X509SVID, len(u.SVIDs)), Crl: crls(u.Trust)}
	for i, v := range u.SVIDs {
		r.Svids[i] = &pb.X509SVID{
			SpiffeId:    v.ID.String(),
			X509Svid:    concat(v.Chain),
			X509SvidKey: v.KeyPKCS8,
			Bundle:      own,
			Hint:        v.Entry.GetHint(),
		}
	}
	for td, roots := range u.Trust.Roots {
		if td == u.Trust.TrustDomain || len(roots) == 0 {
			continue
		}
		if r.FederatedBundles == nil {
			r.FederatedBundles = map[string][]byte{}
		}
		r.FederatedBundles["spiffe://"+td] = concat(roots)
	}
	return r
}

// crls are all lists, the own trust domain's first.
func crls(t *svid.Trust) [][]byte {
	all := slices.Clone(t.CRLs[t.TrustDomain])
	for _, td := range slices.Sorted(maps.Keys(t.CRLs)) {
		if td != t.TrustDomain {
			all = append(all, t.CRLs[td]...)
		}
	}
	return all
}

// concat is the Workload API's form of several certificates: DER after DER.
func concat(ders [][]byte) []byte {
	if len(ders) == 1 {
		return ders[0]
	}
	return slices.Concat(ders...)
}

// FetchX509Bundles pushes the trust bundles and CRLs to a caller that has a
// right to some identity, and again whenever one changes.
func (s *Server) FetchX509Bundles(_ *pb.X509BundlesRequest, stream pb.SpiffeWorkloadAPI_FetchX509BundlesServer) error {
	ctx := stream.Context()
	return s.answer(ctx, pb.SpiffeWorkloadAPI_FetchX509Bundles_FullMethodName, s.pushTrust(ctx, true, func(t *svid.Trust) error {
		r := &pb.X509BundlesResponse{Crl: crls(t), Bundles: map[string][]byte{}}
		for td, roots := range t.Roots {
			if len(roots) > 0 {
				r.Bundles["spiffe://"+td] = concat(roots)
			}
		}
		return stream.Send(r)
	}))
}

// FetchJWTBundles pushes the JWK sets, and again whenever one changes.
func (s *Server) FetchJWTBundles(_ *pb.JWTBundlesRequest, stream pb.SpiffeWorkloadAPI_FetchJWTBundlesServer) error {
	ctx := stream.Context()
	var last map[string][]byte
	return s.answer(ctx, pb.SpiffeWorkloadAPI_FetchJWTBundles_FullMethodName, s.pushTrust(ctx, false, func(t *svid.Trust) error {
		sets := map[string][]byte{}
		for td, jwks := range t.JWKS {
			if len(jwks) > 0 {
				sets["spiffe://"+td] = jwks
			}
		}
		if last != nil && maps.EqualFunc(last, sets, func(a, b []byte) bool { return string(a) == string(b) }) {
			return nil
		}
		last = sets
		return stream.Send(&pb.JWTBundlesResponse{Bundles: sets})
	}))
}

func (s *Server) pushTrust(ctx context.Context, withCRLs bool, send func(*svid.Trust) error) error {
	c, err := s.enter(ctx)
	if err != nil {
		return err
	}
	defer c.leave()
	defer c.bind()()
	told := false
	defer func() {
		if told {
			s.p.OnGone(c.name)
		}
	}()
	for {
		// Both again at each push: the entries may have changed, or the program.
		if _, err := s.p.Manager.WaitMatch(c.ctx, c.selectors); err != nil {
			return c.because(err)
		}
		if err := c.same(); err != nil {
			return err
		}
		trust, changed := s.p.Manager.Trust()
		if err := send(trust); err != nil {
			return err
		}
		if withCRLs {
			told = true
			s.p.OnDelivered(c.name, "", trust.CRLNumber)
		}
		select {
		case <-changed:
		case <-c.ctx.Done():
			return c.because(c.ctx.Err())
		}
	}
}
