package callers

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/peer"

	"github.com/legation-io/legation/internal/fault"
)

// Binding grants a role to SPIFFE IDs; roleBindings in the configuration.
type Binding struct {
	// Role is viewer, operator, security or admin.
	Role string `json:"role" yaml:"role"`
	// Namespace is one namespace, or "*" (also when empty) for all.
	Namespace string `json:"namespace" yaml:"namespace"`
	// Subjects are SPIFFE IDs of the server's own trust domain.
	Subjects []string `json:"subjects" yaml:"subjects"`
}

// SPIFFE classifies callers by the SPIFFE ID they proved.
type SPIFFE struct {
	trustDomain spiffeid.TrustDomain
	grants      map[spiffeid.ID][]Grant
}

// NewSPIFFE checks the bindings and returns the classifier of a trust domain.
// It reports all mistakes at once, by the key that was typed (fault.Invalid).
func NewSPIFFE(trustDomain spiffeid.TrustDomain, bindings []Binding) (*SPIFFE, error) {
	s := &SPIFFE{trustDomain: trustDomain, grants: map[spiffeid.ID][]Grant{}}
	var errs []error
	for n, b := range bindings {
		key := fmt.Sprintf("roleBindings[%d]", n)
		role := Role(roleNumber(b.Role))
		if role == NoRole {
			errs = append(errs, fmt.Errorf("%s.role: %q is none of viewer, operator, security, admin", key, b.Role))
		}
		if len(b.Subjects) == 0 {
			errs = append(errs, fmt.Errorf("%s.subjects: name at least one SPIFFE ID", key))
		}
		namespace := b.Namespace
		if namespace == "" {
			namespace = AllNamespaces
		}
		for k, subject := range b.Subjects {
			id, err := spiffeid.FromString(subject)
			switch {
			case err != nil:
				errs = append(errs, fmt.Errorf("%s.subjects[%d]: %q is no SPIFFE ID: %w", key, k, subject, err))
			case !id.MemberOf(trustDomain):
				errs = append(errs, fmt.Errorf("%s.subjects[%d]: %s is not of the trust domain %s", key, k, id, trustDomain))
			case id.Path() == serverPath || strings.HasPrefix(id.Path(), agentPrefix):
				errs = append(errs, fmt.Errorf("%s.subjects[%d]: %s is a server or an agent; people and pipelines have SVIDs of their own", key, k, id))
			default:
				s.grants[id] = append(s.grants[id], Grant{Role: role, Namespace: namespace})
			}
		}
	}
	if err := errors.Join(errs...); err != nil {
		return nil, fault.New(fault.Invalid, "%w", err)
	}
	return s, nil
}

func roleNumber(name string) int32 {
	for _, r := range []Role{Viewer, RoleOperator, Security, Admin} {
		if roleName(r) == name {
			return int32(r)
		}
	}
	return 0
}

const (
	reservedPrefix = "/legation/"
	serverPath     = "/legation/server"
	agentPrefix    = "/legation/agent/"
)

// Classify returns what a caller is that proved the ID; a zero ID is None. An
// ID under the reserved path /legation/ that is neither a server, an agent
// nor bound to a role is Unspecified: nothing admits it.
func (s *SPIFFE) Classify(id spiffeid.ID) Identity {
	i := Identity{SPIFFEID: id}
	path := id.Path()
	node, isAgent := strings.CutPrefix(path, agentPrefix)
	switch {
	case id.IsZero():
		i.Class = None
	case !id.MemberOf(s.trustDomain):
		i.Class = Federated
	case path == serverPath:
		i.Class = Server
	case isAgent && !strings.Contains(node, "/"):
		i.Class, i.Node = Agent, node
	case s.grants[id] != nil:
		i.Class, i.Roles = Operator, s.grants[id]
	case path == "" || strings.HasPrefix(path+"/", reservedPrefix):
		i.Class = Unspecified
	default:
		i.Class = Workload
	}
	return i
}

// TLS classifies the peer of a gRPC connection by the certificate of its TLS
// handshake. The listener's tls.Config must verify what is presented with
// sdk/chaincheck: here the leaf is only read.
func (s *SPIFFE) TLS(ctx context.Context) (Identity, error) {
	p, ok := peer.FromContext(ctx)
	if !ok {
		return Identity{}, fault.New(fault.Denied, "the connection has no peer")
	}
	info, ok := p.AuthInfo.(credentials.TLSInfo)
	if !ok {
		return Identity{}, fault.New(fault.Denied, "the connection is not TLS")
	}
	if len(info.State.PeerCertificates) == 0 {
		return s.Classify(spiffeid.ID{}), nil
	}
	id, err := x509svid.IDFromCert(info.State.PeerCertificates[0])
	if err != nil {
		return Identity{}, fault.New(fault.Denied, "the client's certificate is no X.509-SVID: %w", err)
	}
	return s.Classify(id), nil
}

// As classifies every caller alike: for Unix sockets, whose file mode or
// attestation decides who connects (Owner, Workload).
func As(class Class) Classify {
	return func(context.Context) (Identity, error) { return Identity{Class: class}, nil }
}
