package sds

import (
	"context"
	"strings"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/legation-io/legation/internal/distribute"
	"github.com/legation-io/legation/internal/fault"
)

// FetchSecrets answers once. Without names, or with "*", it returns all
// secrets the caller may see; a name that cannot be served is NotFound, with
// the explanation.
func (s *Server) FetchSecrets(ctx context.Context, m *discoveryv3.DiscoveryRequest) (*discoveryv3.DiscoveryResponse, error) {
	at, err := s.p.Authorise(ctx)
	if err != nil {
		s.metrics.denied.Inc()
		s.warn(s.p.Log, "denied", "call denied", "protocol", "unary", "error", err)
		return nil, fault.GRPC(err)
	}
	if at.Closed != nil {
		defer at.Closed()
	}
	r, err := s.fetch(at, m)
	if err != nil {
		s.warn(s.p.Log, "fetch", "unary fetch refused", "subscriber", at.Subscriber, "error", err)
		return nil, fault.GRPC(err)
	}
	return r, nil
}

func (s *Server) fetch(at *Attachment, m *discoveryv3.DiscoveryRequest) (*discoveryv3.DiscoveryResponse, error) {
	p := &peer{server: s, at: at}
	typ, err := p.begin(m.GetNode(), m.GetTypeUrl(), TypeSecret, m.GetResourceNames())
	if err != nil {
		return nil, err
	}
	if n := len(m.GetResourceNames()); n > s.p.MaxNames {
		return nil, fault.New(fault.Limited, "fetch of %d names; the limit is %d", n, s.p.MaxNames)
	}
	var found []*distribute.Resource
	var why []string
	seen := make(map[string]struct{})
	all := len(m.GetResourceNames()) == 0
	for _, name := range m.GetResourceNames() {
		if name == "*" {
			all = true
			continue
		}
		if _, twice := seen[name]; twice {
			continue
		}
		seen[name] = struct{}{}
		if r := s.p.Engine.Lookup(at.Scopes, typ, name); r != nil {
			found = append(found, r)
			continue
		}
		s.metrics.missing.Inc()
		if len(why) < 10 {
			why = append(why, name+": "+at.explain(typ, name))
		}
	}
	if len(why) > 0 {
		return nil, fault.New(fault.NotFound, "cannot serve %s", strings.Join(why, "; "))
	}
	if all {
		found = s.p.Engine.List(at.Scopes, typ)
	}
	return sotwResponse(typ, "", found), nil
}
