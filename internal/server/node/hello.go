package node

import (
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	nodev1 "github.com/legation-io/legation/api/node/v1"
	"github.com/legation-io/legation/internal/fault"
)

func (s *Server) hello() *nodev1.Hello {
	return &nodev1.Hello{TrustDomain: s.p.TrustDomain.Name(), Protocol: Protocol, Features: Features, Version: s.p.Version}
}

// checkHello refuses a caller of another trust domain or protocol.
func (s *Server) checkHello(h *nodev1.Hello) error {
	if h == nil {
		return fault.New(fault.Invalid, "the first message of a stream must carry a hello")
	}
	if err := s.checkTrustDomain(h.GetTrustDomain()); err != nil {
		return err
	}
	if h.GetProtocol() < minProtocol || h.GetProtocol() > Protocol {
		return fault.New(fault.Invalid, "protocol version %d: this control plane (%s) speaks %d to %d; upgrade the older side", h.GetProtocol(), s.p.Version, minProtocol, Protocol)
	}
	if len(h.GetFeatures()) > 64 || len(h.GetVersion()) > 128 {
		return fault.New(fault.Invalid, "hello: at most 64 features and a version of 128 bytes")
	}
	return nil
}

func (s *Server) checkTrustDomain(name string) error {
	if name != s.p.TrustDomain.Name() {
		return fault.New(fault.Invalid, "trust domain %q: this control plane serves %q", name, s.p.TrustDomain.Name())
	}
	return nil
}

// workloadID parses a SPIFFE ID that a workload of this trust domain may have.
func (s *Server) workloadID(text string) (spiffeid.ID, error) {
	id, err := spiffeid.FromString(text)
	if err != nil {
		return spiffeid.ID{}, fault.New(fault.Invalid, "SPIFFE ID %.300q: %w", text, err)
	}
	if id.TrustDomain() != s.p.TrustDomain {
		return spiffeid.ID{}, fault.New(fault.Denied, "%s is not of trust domain %s", id, s.p.TrustDomain)
	}
	if reserved(id) {
		return spiffeid.ID{}, fault.New(fault.Denied, "%s is reserved for Legation itself", id)
	}
	return id, nil
}
