package callers_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net/url"
	"strings"
	"testing"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"

	"github.com/legation-io/legation/internal/callers"
	"github.com/legation-io/legation/internal/fault"
)

var td = spiffeid.RequireTrustDomainFromString("example.org")

func classifier(t *testing.T) *callers.SPIFFE {
	t.Helper()
	s, err := callers.NewSPIFFE(td, []callers.Binding{
		{Role: "security", Subjects: []string{"spiffe://example.org/people/ada"}},
		{Role: "operator", Namespace: "retail", Subjects: []string{"spiffe://example.org/ci/retail", "spiffe://example.org/people/ada"}},
		{Role: "viewer", Namespace: "*", Subjects: []string{"spiffe://example.org/legation/probe"}},
	})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// TestA14OnlyTheExactIDIsAServer and its neighbours: the class follows the
// whole path, never a prefix of it.
func TestA14OnlyTheExactIDIsAServer(t *testing.T) {
	for _, row := range []struct {
		name, id string
		class    callers.Class
		node     string
	}{
		{"no certificate", "", callers.None, ""},
		{"a workload", "spiffe://example.org/ns/retail/sa/web", callers.Workload, ""},
		{"an agent", "spiffe://example.org/legation/agent/n1", callers.Agent, "n1"},
		{"an agent's path with more behind it", "spiffe://example.org/legation/agent/n1/x", callers.Unspecified, ""},
		{"the agents' folder", "spiffe://example.org/legation/agent", callers.Unspecified, ""},
		{"a server", "spiffe://example.org/legation/server", callers.Server, ""},
		{"below the server", "spiffe://example.org/legation/server/x", callers.Unspecified, ""},
		{"nearly the server", "spiffe://example.org/legation/servers", callers.Unspecified, ""},
		{"the reserved root", "spiffe://example.org/legation", callers.Unspecified, ""},
		{"near the reserved root", "spiffe://example.org/legations", callers.Workload, ""},
		{"the trust domain itself", "spiffe://example.org", callers.Unspecified, ""},
		{"another domain's server", "spiffe://example.com/legation/server", callers.Federated, ""},
		{"another domain's agent", "spiffe://example.com/legation/agent/n1", callers.Federated, ""},
		{"a subdomain's server", "spiffe://a.example.org/legation/server", callers.Federated, ""},
		{"a bound person", "spiffe://example.org/people/ada", callers.Operator, ""},
		{"a bound ID under the reserved path", "spiffe://example.org/legation/probe", callers.Operator, ""},
		{"upper case is another path", "spiffe://example.org/Legation/server", callers.Workload, ""},
	} {
		t.Run(row.name, func(t *testing.T) {
			var id spiffeid.ID
			if row.id != "" {
				id = spiffeid.RequireFromString(row.id)
			}
			if got := classifier(t).Classify(id); got.Class != row.class || got.Node != row.node || got.SPIFFEID != id {
				t.Errorf("%s is %s node %q, want %s node %q", row.id, got.Class, got.Node, row.class, row.node)
			}
		})
	}
}

func TestRolesHoldPerNamespace(t *testing.T) {
	ada := classifier(t).Classify(spiffeid.RequireFromString("spiffe://example.org/people/ada"))
	for _, row := range []struct {
		name      string
		role      callers.Role
		namespace string
		may       bool
	}{
		{"security everywhere includes viewer everywhere", callers.Viewer, "any", true},
		{"security everywhere", callers.Security, callers.AllNamespaces, true},
		{"operator where bound", callers.RoleOperator, "retail", true},
		{"not operator elsewhere", callers.RoleOperator, "bank", false},
		{"not operator everywhere", callers.RoleOperator, callers.AllNamespaces, false},
		{"never admin", callers.Admin, "retail", false},
	} {
		t.Run(row.name, func(t *testing.T) {
			err := callers.Require(callers.NewContext(t.Context(), ada), row.role, row.namespace)
			if (err == nil) != row.may || err != nil && !fault.Is(err, fault.Denied) {
				t.Errorf("may %t, got %v", row.may, err)
			}
		})
	}
	if callers.Require(t.Context(), callers.Viewer, "retail") == nil {
		t.Error("a context without a caller holds a role")
	}
	if callers.Require(callers.NewContext(t.Context(), callers.Identity{Class: callers.Owner}), callers.Admin, "*") != nil {
		t.Error("the owner of the socket lacks a role")
	}
}

func TestBadBindingsAreAllReportedByKey(t *testing.T) {
	_, err := callers.NewSPIFFE(td, []callers.Binding{
		{Role: "root", Subjects: []string{"spiffe://example.org/a"}},
		{Role: "viewer"},
		{Role: "viewer", Subjects: []string{"example.org/a", "spiffe://example.com/a", "spiffe://example.org/legation/server", "spiffe://example.org/legation/agent/n1"}},
	})
	if !fault.Is(err, fault.Invalid) {
		t.Fatalf("want invalid, got %v", err)
	}
	for _, want := range []string{"roleBindings[0].role", "roleBindings[1].subjects", "roleBindings[2].subjects[0]", "roleBindings[2].subjects[1]", "roleBindings[2].subjects[2]", "roleBindings[2].subjects[3]"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%s is not reported in: %v", want, err)
		}
	}
}

func TestTLSReadsThePeersLeaf(t *testing.T) {
	s := classifier(t)
	leaf := func(uris ...string) context.Context {
		info := credentials.TLSInfo{State: tls.ConnectionState{}}
		if uris != nil {
			cert := &x509.Certificate{}
			for _, u := range uris {
				parsed, err := url.Parse(u)
				if err != nil {
					t.Fatal(err)
				}
				cert.URIs = append(cert.URIs, parsed)
			}
			info.State.PeerCertificates = []*x509.Certificate{cert}
		}
		return peer.NewContext(t.Context(), &peer.Peer{AuthInfo: info})
	}
	if i, err := s.TLS(leaf()); err != nil || i.Class != callers.None {
		t.Errorf("no certificate: %v, %v", i, err)
	}
	if i, err := s.TLS(leaf("spiffe://example.org/legation/agent/n1")); err != nil || i.Class != callers.Agent {
		t.Errorf("an agent: %v, %v", i, err)
	}
	for name, ctx := range map[string]context.Context{
		"two URI names": leaf("spiffe://example.org/legation/agent/n1", "spiffe://example.org/a"),
		"no TLS":        peer.NewContext(t.Context(), &peer.Peer{}),
		"no peer":       t.Context(),
	} {
		if i, err := s.TLS(ctx); !fault.Is(err, fault.Denied) || i.Class != callers.Unspecified {
			t.Errorf("%s: %v, %v", name, i, err)
		}
	}
}

func TestARefusalSaysWhatIsNeededAndIsReported(t *testing.T) {
	m := whole(t)
	var told string
	unary, _ := m.Interceptors(callers.As(callers.Workload), func(_ context.Context, method string, i callers.Identity, err error) {
		told = method + ": " + i.String() + ": " + err.Error()
	})
	_, err := unary(t.Context(), nil, &grpc.UnaryServerInfo{FullMethod: "/legation.admin.v1.Admin/Revoke"}, nil)
	if status.Code(err) != codes.PermissionDenied || !strings.Contains(err.Error(), "class operator or owner") {
		t.Errorf("got %v", err)
	}
	if !strings.Contains(told, "class workload") || !strings.Contains(told, "Admin/Revoke") {
		t.Errorf("the observer was told %q", told)
	}
	unary, _ = m.Interceptors(func(context.Context) (callers.Identity, error) {
		return callers.Identity{}, errors.New("secret detail")
	}, nil)
	_, err = unary(t.Context(), nil, &grpc.UnaryServerInfo{FullMethod: "/legation.admin.v1.Admin/Revoke"}, nil)
	if status.Code(err) != codes.Internal || strings.Contains(err.Error(), "secret") {
		t.Errorf("got %v", err)
	}
	id := callers.Identity{Class: callers.Operator, SPIFFEID: spiffeid.RequireFromString("spiffe://example.org/x"), Roles: []callers.Grant{{Role: callers.Viewer, Namespace: "*"}}}
	if err := m.Check("/legation.admin.v1.Admin/Revoke", id); err == nil || !strings.Contains(err.Error(), "role security") {
		t.Errorf("got %v", err)
	}
}
