package sds

import (
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/legation-io/legation/internal/distribute"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/anypb"
)

type deltaStream = grpc.BidiStreamingServer[discoveryv3.DeltaDiscoveryRequest, discoveryv3.DeltaDiscoveryResponse]

// DeltaSecrets serves incremental SDS.
func (s *Server) DeltaSecrets(stream deltaStream) error { return s.delta(stream, TypeSecret) }

// DeltaAggregatedResources serves incremental ADS.
func (s *Server) DeltaAggregatedResources(stream deltaStream) error { return s.delta(stream, "") }

func (s *Server) delta(stream deltaStream, implied string) error {
	return s.run(stream.Context(), door{
		protocol: "delta",
		receive: func(p *peer) error {
			m, err := stream.Recv()
			if err != nil {
				return err
			}
			return p.delta(m, implied)
		},
		send: func(p *peer, r *distribute.Response) error {
			p.missing(r)
			return stream.Send(deltaResponse(r))
		},
	})
}

func (p *peer) delta(m *discoveryv3.DeltaDiscoveryRequest, implied string) error {
	typ, err := p.begin(m.GetNode(), m.GetTypeUrl(), implied, m.GetResourceNamesSubscribe(), m.GetResourceNamesUnsubscribe())
	if err != nil {
		return err
	}
	return p.sub.Request(distribute.Request{
		Type:        typ,
		Subscribe:   m.GetResourceNamesSubscribe(),
		Unsubscribe: m.GetResourceNamesUnsubscribe(),
		Initial:     m.GetInitialResourceVersions(),
		Nonce:       m.GetResponseNonce(),
		Error:       p.refusal(typ, m.GetErrorDetail()),
	})
}

// deltaResponse wraps the shared bytes; the inner message is not touched.
func deltaResponse(r *distribute.Response) *discoveryv3.DeltaDiscoveryResponse {
	m := &discoveryv3.DeltaDiscoveryResponse{
		TypeUrl: r.Type, Nonce: r.Nonce, RemovedResources: r.Removed,
		Resources: make([]*discoveryv3.Resource, len(r.Resources)),
	}
	for i, x := range r.Resources {
		m.Resources[i] = &discoveryv3.Resource{Name: x.Name, Version: x.Version, Resource: &anypb.Any{TypeUrl: x.Type, Value: x.Body}}
	}
	return m
}
