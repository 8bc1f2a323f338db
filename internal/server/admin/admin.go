// Package admin is the door for people and CI: it translates the admin API
// into calls of the catalog, the authority, the journal and the registry of
// nodes. Who may call what is settled before (package callers); only what
// depends on the objects named is checked here.
package admin

import (
	"context"
	"encoding/hex"
	"fmt"
	"log/slog"
	"strings"
	"time"

	adminv1 "github.com/legation-io/legation/api/admin/v1"
	"github.com/legation-io/legation/internal/acks"
	"github.com/legation-io/legation/internal/attest/node/jointoken"
	"github.com/legation-io/legation/internal/attest/node/registry"
	"github.com/legation-io/legation/internal/ca"
	"github.com/legation-io/legation/internal/callers"
	"github.com/legation-io/legation/internal/catalog"
	"github.com/legation-io/legation/internal/clock"
	"github.com/legation-io/legation/internal/distribute"
	"github.com/legation-io/legation/internal/fault"
	"github.com/legation-io/legation/internal/ledger"
	"github.com/legation-io/legation/internal/store"
	"github.com/legation-io/legation/sdk/renewal"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// Presence is a node that is connected to this replica.
type Presence struct {
	Node    string
	Since   time.Time
	Version string // of its program
}

// Params are a Server's inputs.
type Params struct {
	TrustDomain spiffeid.TrustDomain
	Catalog     *catalog.Catalog
	Authority   *ca.Authority
	Journal     *ledger.Journal
	Registry    *registry.Registry
	Tokens      *jointoken.Tokens
	// Connected lists the nodes that are connected to this replica.
	Connected func() []Presence
	// StillBlocked names the nodes that are connected to this replica and
	// have not acknowledged that an identity is not blocked any more.
	StillBlocked func(spiffeID string) []string
	// Renewals lists the certificates that this replica renews for itself;
	// nil: none.
	Renewals func() []*renewal.Certificate
	Acks     *acks.Ledger
	Engine   *distribute.Engine
	Store    store.Store
	Clock    clock.Clock
	Log      *slog.Logger
	Version  string
	Started  time.Time
}

// Server implements adminv1.AdminServer.
type Server struct {
	adminv1.UnimplementedAdminServer
	p Params
}

// New returns a Server. It starts nothing.
func New(p Params) *Server { return &Server{p: p} }

func (s *Server) checkTrustDomain(name string) error {
	if name != "" && name != s.p.TrustDomain.Name() {
		return fault.New(fault.Invalid, "this control plane is of trust domain %s, not %s", s.p.TrustDomain.Name(), name)
	}
	return nil
}

// answer is where errors are logged once and translated.
func answer[T any](ctx context.Context, s *Server, what string, r T, err error) (T, error) {
	if err != nil {
		if fault.KindOf(err) == fault.Internal {
			s.p.Log.Error(what+" failed", "caller", callers.FromContext(ctx).String(), "error", err)
		}
		var none T
		return none, fault.GRPC(err)
	}
	return r, nil
}

func (s *Server) audit(ctx context.Context, what string, args ...any) {
	s.p.Log.Info(what, append([]any{"audit", true, "caller", callers.FromContext(ctx).String()}, args...)...)
}

// Apply stores all documents or none.
func (s *Server) Apply(ctx context.Context, req *adminv1.ApplyRequest) (*adminv1.ApplyResponse, error) {
	r, err := s.apply(ctx, req)
	return answer(ctx, s, "apply", r, err)
}

func (s *Server) apply(ctx context.Context, req *adminv1.ApplyRequest) (*adminv1.ApplyResponse, error) {
	if err := s.checkTrustDomain(req.TrustDomain); err != nil {
		return nil, err
	}
	p := catalog.ApplyParams{Documents: req.Documents, Namespace: req.Namespace, DryRun: true, Actor: callers.FromContext(ctx).String()}
	if err := callers.Require(ctx, callers.RoleOperator, callers.AllNamespaces); err != nil {
		// A role in some namespaces: every object must be in one of them.
		applied, problems, err := s.p.Catalog.Apply(ctx, p)
		if err != nil || len(problems) > 0 {
			return &adminv1.ApplyResponse{Problems: problems}, err
		}
		for _, a := range applied {
			if err := callers.Require(ctx, callers.RoleOperator, a.Namespace); err != nil {
				return nil, err
			}
		}
	}
	p.DryRun = req.DryRun
	applied, problems, err := s.p.Catalog.Apply(ctx, p)
	if err == nil && len(problems) == 0 && !req.DryRun {
		for _, a := range applied {
			if a.Action != "unchanged" {
				s.audit(ctx, "applied", "kind", a.Kind, "namespace", a.Namespace, "name", a.Name, "action", a.Action)
			}
		}
	}
	return &adminv1.ApplyResponse{Applied: applied, Problems: problems}, err
}

// Get lists declared resources.
func (s *Server) Get(ctx context.Context, req *adminv1.GetRequest) (*adminv1.GetResponse, error) {
	objects, err := func() ([]*adminv1.Object, error) {
		if err := s.checkTrustDomain(req.TrustDomain); err != nil {
			return nil, err
		}
		if err := callers.Require(ctx, callers.Viewer, namespaceOr(req.Namespace, callers.AllNamespaces)); err != nil {
			return nil, err
		}
		return s.p.Catalog.Get(req.Kind, req.Namespace, req.Names)
	}()
	return answer(ctx, s, "get", &adminv1.GetResponse{Objects: objects}, err)
}

func namespaceOr(name, otherwise string) string {
	if name == "" {
		return otherwise
	}
	return name
}

// Delete removes declared resources.
func (s *Server) Delete(ctx context.Context, req *adminv1.DeleteRequest) (*adminv1.DeleteResponse, error) {
	deleted, err := func() ([]*adminv1.Applied, error) {
		if err := s.checkTrustDomain(req.TrustDomain); err != nil {
			return nil, err
		}
		space := namespaceOr(req.Namespace, catalog.DefaultNamespace)
		if len(req.Documents) > 0 {
			space = callers.AllNamespaces // documents name their own
		}
		if err := callers.Require(ctx, callers.RoleOperator, space); err != nil {
			return nil, err
		}
		deleted, problems, err := s.p.Catalog.Delete(ctx, catalog.DeleteParams{
			Kind: req.Kind, Namespace: namespaceOr(req.Namespace, catalog.DefaultNamespace), Names: req.Names, Documents: req.Documents,
			IgnoreNotFound: req.IgnoreNotFound, Actor: callers.FromContext(ctx).String(),
		})
		if err == nil && len(problems) > 0 {
			p := problems[0]
			count := "1 mistake"
			if n := len(problems); n > 1 {
				count = fmt.Sprintf("%d mistakes", n)
			}
			err = fault.New(fault.Invalid, "%s:%d: %s: %s (%s; nothing was deleted)", p.File, p.Line, p.Field, p.Message, count)
		}
		for _, d := range deleted {
			s.audit(ctx, "deleted", "kind", d.Kind, "namespace", d.Namespace, "name", d.Name)
		}
		return deleted, err
	}()
	return answer(ctx, s, "delete", &adminv1.DeleteResponse{Deleted: deleted}, err)
}

// CreateToken makes a join token.
func (s *Server) CreateToken(ctx context.Context, req *adminv1.CreateTokenRequest) (*adminv1.CreateTokenResponse, error) {
	r, err := func() (*adminv1.CreateTokenResponse, error) {
		if err := s.checkTrustDomain(req.TrustDomain); err != nil {
			return nil, err
		}
		// A node belongs to no namespace.
		if err := callers.Require(ctx, callers.Security, callers.AllNamespaces); err != nil {
			return nil, err
		}
		record, err := s.p.Registry.Get(ctx, req.Node)
		if err != nil && !fault.Is(err, fault.NotFound) {
			return nil, err
		}
		if record.Banned {
			return nil, fault.New(fault.Denied, "node %s is banned (%s); lift that first: legation node unban %s", req.Node, record.BanReason, req.Node)
		}
		token, expires, err := s.p.Tokens.Create(ctx, jointoken.Request{Node: req.Node, TTL: time.Duration(req.TtlSeconds) * time.Second, Actor: callers.FromContext(ctx).String()})
		if err != nil {
			return nil, err
		}
		s.audit(ctx, "join token created", "node", req.Node, "expires", expires)
		return &adminv1.CreateTokenResponse{Token: token, Node: req.Node, ExpiresAtUnix: expires.Unix(), BundleHash: s.p.Authority.BundleHash()}, nil
	}()
	return answer(ctx, s, "create token", r, err)
}

// GetBundle returns the trust bundle.
func (s *Server) GetBundle(ctx context.Context, req *adminv1.GetBundleRequest) (*adminv1.GetBundleResponse, error) {
	if err := s.checkTrustDomain(req.TrustDomain); err != nil {
		return nil, fault.GRPC(err)
	}
	state, _ := s.p.Authority.State()
	return &adminv1.GetBundleResponse{Bundle: state.Bundle, SpiffeJson: s.p.Authority.BundleJSON(), Hash: s.p.Authority.BundleHash()}, nil
}

// defaultCertificates bounds a listing that names no limit, maxCertificates
// every one: an answer is one message.
const (
	defaultCertificates = 500
	maxCertificates     = 5000
)

// ListCertificates reads the inventory.
func (s *Server) ListCertificates(ctx context.Context, req *adminv1.ListCertificatesRequest) (*adminv1.ListCertificatesResponse, error) {
	if err := s.checkTrustDomain(req.TrustDomain); err != nil {
		return nil, fault.GRPC(err)
	}
	if err := callers.Require(ctx, callers.Viewer, namespaceOr(req.Namespace, callers.AllNamespaces)); err != nil {
		return nil, fault.GRPC(err)
	}
	now := s.p.Clock.Now()
	f := ledger.Filter{
		Kind: ledger.KindX509, Namespace: req.Namespace, SPIFFEID: req.SpiffeId, Node: req.Node, Instance: req.Instance,
		SerialPrefix: strings.ToLower(req.Serial), Limit: int(req.Limit),
	}
	if f.Limit == 0 {
		f.Limit = defaultCertificates
	}
	f.Limit = min(f.Limit, maxCertificates)
	if !req.IncludeExpired {
		f.ExpiresFrom = now
	}
	if req.ExpiresWithinSeconds > 0 {
		f.ExpiresUntil = now.Add(time.Duration(req.ExpiresWithinSeconds) * time.Second)
	}
	records, total := s.p.Journal.List(f)
	state, _ := s.p.Authority.State()
	r := &adminv1.ListCertificatesResponse{Total: uint32(total)}
	for i := range records {
		r.Certificates = append(r.Certificates, certificate(&records[i], state))
	}
	return r, nil
}

func certificate(r *ledger.Record, state *ca.State) *adminv1.Certificate {
	c := &adminv1.Certificate{
		Serial: r.Serial, SpiffeId: r.SPIFFEID, Node: r.Node, Entry: r.Entry, Instance: r.Instance, Authority: r.Authority, Profile: r.Profile,
		IssuedAtUnix: r.IssuedAt.Unix(), NotBeforeUnix: r.NotBefore.Unix(), NotAfterUnix: r.NotAfter.Unix(),
		DnsNames: r.DNSNames, Sha256: hex.EncodeToString(r.SHA256[:]), LifetimeReason: r.LifetimeReason,
	}
	for _, ip := range r.IPs {
		c.IpAddresses = append(c.IpAddresses, ip.String())
	}
	if v, ok := state.Revoked(r.Serial); ok {
		c.Revoked, c.RevokedAtUnix, c.RevocationReason = true, v.At.Unix(), v.Reason
	}
	return c
}

// serial completes a unique beginning.
func (s *Server) serial(prefix string) (string, error) {
	if prefix == "" || strings.Trim(prefix, "0123456789abcdef") != "" {
		return "", fault.New(fault.Invalid, "serial %q is not lower-case hex", prefix)
	}
	records, total := s.p.Journal.List(ledger.Filter{Kind: ledger.KindX509, SerialPrefix: prefix, Limit: 2})
	switch total {
	case 0:
		return "", fault.New(fault.NotFound, "no certificate has a serial that begins with %s\ntry: legation cert list --expired", prefix)
	case 1:
		return records[0].Serial, nil
	}
	return "", fault.New(fault.Invalid, "%s matches %d certificates; give more digits, or: legation cert list --serial %s", prefix, total, prefix)
}
