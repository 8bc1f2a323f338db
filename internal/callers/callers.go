// Package callers answers "may this caller call this RPC". The matrix of RPC
// and caller class is made from the options beside each RPC in api/, rows of
// foreign services (SPIFFE, Envoy, health) are added by hand, and what has no
// row is refused. It decides nothing about single objects: a handler narrows
// to the node or the namespace with the Identity it finds in its context.
package callers

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	optionsv1 "github.com/legation-io/legation/api/options/v1"
	"github.com/legation-io/legation/internal/fault"
)

// Class says what a caller proved to be, before any role.
type Class = optionsv1.CallerClass

// The classes.
const (
	Unspecified = optionsv1.CallerClass_CALLER_CLASS_UNSPECIFIED // admitted nowhere
	None        = optionsv1.CallerClass_CALLER_CLASS_NONE
	Workload    = optionsv1.CallerClass_CALLER_CLASS_WORKLOAD
	Agent       = optionsv1.CallerClass_CALLER_CLASS_AGENT
	Server      = optionsv1.CallerClass_CALLER_CLASS_SERVER
	Operator    = optionsv1.CallerClass_CALLER_CLASS_OPERATOR
	Owner       = optionsv1.CallerClass_CALLER_CLASS_OWNER
	Federated   = optionsv1.CallerClass_CALLER_CLASS_FEDERATED
)

// Classes are all classes a caller can have, in the order of the matrix.
var Classes = []Class{None, Workload, Agent, Server, Operator, Owner, Federated}

// Role is what operators are granted.
type Role = optionsv1.Role

// The roles. Operator and Security each include Viewer; Admin includes all.
const (
	NoRole       = optionsv1.Role_ROLE_UNSPECIFIED
	Viewer       = optionsv1.Role_ROLE_VIEWER
	RoleOperator = optionsv1.Role_ROLE_OPERATOR
	Security     = optionsv1.Role_ROLE_SECURITY
	Admin        = optionsv1.Role_ROLE_ADMIN
)

// AllNamespaces in a Grant or a question means every namespace, and whatever
// belongs to none.
const AllNamespaces = "*"

// Grant is a role in one namespace, or in AllNamespaces.
type Grant struct {
	Role      Role
	Namespace string
}

// Identity is who calls, parsed once; handlers act on this value.
type Identity struct {
	Class Class
	// SPIFFEID is zero for callers without a certificate.
	SPIFFEID spiffeid.ID
	// Node is the node's name when Class is Agent.
	Node string
	// Roles are the grants when Class is Operator.
	Roles []Grant
}

// May reports whether the identity holds the role in the namespace.
func (i Identity) May(role Role, namespace string) bool {
	if role == NoRole {
		return true
	}
	switch i.Class {
	case Owner:
		return true
	case Operator:
		return slices.ContainsFunc(i.Roles, func(g Grant) bool {
			return includes(g.Role, role) && (g.Namespace == AllNamespaces || g.Namespace == namespace)
		})
	}
	return false
}

func (i Identity) mayAnywhere(role Role) bool {
	return i.May(role, AllNamespaces) || i.Class == Operator && slices.ContainsFunc(i.Roles, func(g Grant) bool {
		return includes(g.Role, role)
	})
}

func includes(have, want Role) bool {
	return have == want || have == Admin || want == Viewer && (have == RoleOperator || have == Security)
}

// String names the caller for errors, logs and the audit trail.
func (i Identity) String() string {
	if i.SPIFFEID.IsZero() {
		return "caller of class " + className(i.Class)
	}
	return fmt.Sprintf("%s (class %s)", i.SPIFFEID, className(i.Class))
}

func className(c Class) string {
	if c == Unspecified {
		return "unknown"
	}
	return strings.ToLower(strings.TrimPrefix(c.String(), "CALLER_CLASS_"))
}

func roleName(r Role) string {
	return strings.ToLower(strings.TrimPrefix(r.String(), "ROLE_"))
}

type contextKey struct{}

// NewContext returns a context that carries the caller.
func NewContext(ctx context.Context, i Identity) context.Context {
	return context.WithValue(ctx, contextKey{}, i)
}

// FromContext returns the caller that the interceptors admitted. Without one
// it returns an Identity of no class, which may nothing.
func FromContext(ctx context.Context) Identity {
	i, _ := ctx.Value(contextKey{}).(Identity)
	return i
}

// Require returns fault.Denied unless the caller holds the role in the
// namespace; AllNamespaces asks for the role everywhere. Handlers of
// namespaced requests call it for each object they touch.
func Require(ctx context.Context, role Role, namespace string) error {
	i := FromContext(ctx)
	if i.May(role, namespace) {
		return nil
	}
	where := "in namespace " + namespace
	if namespace == AllNamespaces {
		where = "in all namespaces"
	}
	return fault.New(fault.Denied, "%s needs the role %s %s; bind it under roleBindings in the server's configuration", i, roleName(role), where)
}
