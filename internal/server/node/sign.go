package node

import (
	"context"
	"crypto/x509"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	nodev1 "github.com/legation-io/legation/api/node/v1"
	"github.com/legation-io/legation/internal/ca"
	"github.com/legation-io/legation/internal/distribute"
	"github.com/legation-io/legation/internal/fault"
	"github.com/legation-io/legation/internal/limit"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/protobuf/proto"
)

// reserved reports an ID under /legation, which the control plane alone gives.
func reserved(id spiffeid.ID) bool {
	return id.Path() == "/legation" || strings.HasPrefix(id.Path(), "/legation/")
}

// admitSigner admits a unary call; certificates are counted by themselves.
func (s *Server) admitSigner(ctx context.Context, trustDomain string) (Caller, error) {
	caller, err := s.admit(ctx)
	if err != nil {
		return caller, err
	}
	return caller, s.checkTrustDomain(trustDomain)
}

// admitCall admits a unary call and counts it.
func (s *Server) admitCall(ctx context.Context, trustDomain string) (Caller, error) {
	caller, err := s.admitSigner(ctx, trustDomain)
	if err != nil {
		return caller, err
	}
	if wait, ok := s.callRate.Take(caller.Node, 1); !ok {
		return caller, limit.Error("calls of node "+caller.Node, wait)
	}
	return caller, nil
}

// SignX509 signs a batch; each item is authorised alone.
func (s *Server) SignX509(ctx context.Context, req *nodev1.SignX509Request) (*nodev1.SignX509Response, error) {
	caller, err := s.admitSigner(ctx, req.GetTrustDomain())
	if err == nil && len(req.GetItems()) > s.p.Limits.ItemsPerBatch {
		err = fault.New(fault.Invalid, "a batch of %d items: at most %d", len(req.GetItems()), s.p.Limits.ItemsPerBatch)
	}
	if err == nil {
		if wait, ok := s.csrRate.Take(caller.Node, max(1, len(req.GetItems()))); !ok {
			err = limit.Error("certificates for node "+caller.Node, wait)
		}
	}
	if err != nil {
		s.refused(ctx, Refusal{Node: caller.Node, Action: "SignX509", Err: err})
		return nil, limit.GRPC(fmt.Errorf("sign: %w", err))
	}
	results := make([]*nodev1.X509Result, len(req.GetItems()))
	var requests []ca.X509Request
	var index []int // of requests into results
	for i, item := range req.GetItems() {
		r, err := s.authoriseX509(caller, item)
		if err != nil {
			results[i] = s.refuseItem(ctx, caller, "SignX509", item.GetSpiffeId(), err)
			continue
		}
		requests, index = append(requests, r), append(index, i)
	}
	if len(requests) > 0 {
		signed := s.p.Authority.SignX509(ctx, requests)
		if len(signed) != len(requests) {
			s.p.Log.Error("the authority's answer does not fit its request", "requests", len(requests), "results", len(signed))
			return nil, fault.GRPC(fmt.Errorf("sign: %d results for %d requests", len(signed), len(requests)))
		}
		for j, r := range signed {
			if r.Err != nil {
				results[index[j]] = s.refuseItem(ctx, caller, "SignX509", requests[j].ID.String(), r.Err)
				continue
			}
			results[index[j]] = &nodev1.X509Result{Chain: r.Chain}
		}
	}
	return &nodev1.SignX509Response{Results: results}, nil
}

// pushedEntries are the entries that the trust stream gives to the node.
type pushedEntries struct{ engine *distribute.Engine }

func (p pushedEntries) Entry(node, name string) (*nodev1.Entry, error) {
	r := p.engine.Lookup([]distribute.Scope{NodeScope(node)}, "entry", name)
	if r == nil {
		return nil, fault.New(fault.NotFound, "no entry %.300q is parented to node %s", name, node)
	}
	e := new(nodev1.Entry)
	if err := proto.Unmarshal(r.Body, e); err != nil {
		return nil, fmt.Errorf("entry %.300q: %w", name, err)
	}
	return e, nil
}

// entitled returns the entry that lets this node hold that identity.
func (s *Server) entitled(caller Caller, entryName, spiffeID string) (*nodev1.Entry, spiffeid.ID, error) {
	id, err := s.workloadID(spiffeID)
	if err != nil {
		return nil, id, err
	}
	entry, err := s.p.Entries.Entry(caller.Node, entryName)
	if fault.Is(err, fault.NotFound) {
		return nil, id, fault.New(fault.Denied, "no entry %.300q is parented to node %s", entryName, caller.Node)
	}
	if err != nil {
		return nil, id, fmt.Errorf("entry %.300q: %w", entryName, err)
	}
	if entry.GetSpiffeId() != id.String() {
		return nil, id, fault.New(fault.Denied, "entry %s gives %s, not %s", entryName, entry.GetSpiffeId(), id)
	}
	if entry.GetBlocked() {
		return nil, id, fault.New(fault.Denied, "%s is revoked; nothing is issued until that is lifted: legation lift %s", id, id)
	}
	return entry, id, nil
}

func (s *Server) authoriseX509(caller Caller, item *nodev1.X509Item) (ca.X509Request, error) {
	entry, id, err := s.entitled(caller, item.GetEntry(), item.GetSpiffeId())
	if err != nil {
		return ca.X509Request{}, err
	}
	if err := checkInstance(item.GetInstance()); err != nil {
		return ca.X509Request{}, err
	}
	ips, err := ownIPs(entry, item)
	if err != nil {
		return ca.X509Request{}, err
	}
	csr, err := readCSR(item.GetCsr()) // the authority checks its signature
	if err != nil {
		return ca.X509Request{}, err
	}
	if err := checkNames(csr, id, entry.GetDnsNames(), ips); err != nil {
		return ca.X509Request{}, err
	}
	return ca.X509Request{
		Profile: ca.ProfileWorkload, CSR: item.GetCsr(), ID: id,
		TTL:      time.Duration(entry.GetX509TtlSeconds()) * time.Second,
		DNSNames: entry.GetDnsNames(), IPs: ips,
		Namespace: entry.GetNamespace(), Entry: item.GetEntry(), Node: caller.Node, Instance: item.GetInstance(),
	}, nil
}

const maxIPs = 16

func ownIPs(entry *nodev1.Entry, item *nodev1.X509Item) ([]netip.Addr, error) {
	if len(item.GetIpAddresses()) == 0 {
		return nil, nil
	}
	if !entry.GetIncludeOwnIp() {
		return nil, fault.New(fault.Denied, "entry %s does not include the instance's own IP addresses; set includeOwnIP", item.GetEntry())
	}
	if len(item.GetIpAddresses()) > maxIPs {
		return nil, fault.New(fault.Invalid, "%d IP addresses: at most %d", len(item.GetIpAddresses()), maxIPs)
	}
	ips := make([]netip.Addr, 0, len(item.GetIpAddresses()))
	for _, raw := range item.GetIpAddresses() {
		ip, ok := netip.AddrFromSlice(raw)
		if ip = ip.Unmap(); !ok || ip.IsUnspecified() || ip.IsMulticast() || ip.IsLoopback() {
			return nil, fault.New(fault.Invalid, "IP address %x is not one an instance can be reached at", raw)
		}
		ips = append(ips, ip)
	}
	return ips, nil
}

// checkNames refuses a CSR that asks for any name the caller is not given:
// every name of every type is looked at, none is passed on.
func checkNames(csr *x509.CertificateRequest, id spiffeid.ID, dnsNames []string, ips []netip.Addr) error {
	if len(csr.URIs) > 1 {
		return fault.New(fault.Denied, "the certificate request has %d URI names; an SVID has one", len(csr.URIs))
	}
	for _, uri := range csr.URIs {
		if uri.String() != id.String() {
			return fault.New(fault.Denied, "the certificate request is for %.300q, not %s", uri, id)
		}
	}
	for _, name := range csr.DNSNames {
		if !slices.Contains(dnsNames, name) {
			return fault.New(fault.Denied, "the certificate request asks for DNS name %.300q, which its entry does not give", name)
		}
	}
	for _, raw := range csr.IPAddresses {
		ip, _ := netip.AddrFromSlice(raw)
		if !slices.Contains(ips, ip.Unmap()) {
			return fault.New(fault.Denied, "the certificate request asks for IP address %s, which it may not have", raw)
		}
	}
	if len(csr.EmailAddresses) > 0 {
		return fault.New(fault.Denied, "the certificate request asks for e-mail address %.300q; an SVID has none", csr.EmailAddresses[0])
	}
	return nil
}

func checkInstance(instance string) error {
	if len(instance) > 256 {
		return fault.New(fault.Invalid, "an instance name of %d bytes: at most 256", len(instance))
	}
	for _, r := range instance {
		if r < 0x21 || r > 0x7e {
			return fault.New(fault.Invalid, "instance name %q: printable ASCII without spaces is allowed", instance)
		}
	}
	return nil
}

func (s *Server) refuseItem(ctx context.Context, caller Caller, action, object string, err error) *nodev1.X509Result {
	s.refused(ctx, Refusal{Node: caller.Node, Action: action, Object: object, Err: err})
	return &nodev1.X509Result{Refusal: refusalOf(err)}
}

// refusalOf is an error as an agent may read it.
func refusalOf(err error) *nodev1.Refusal {
	kind := fault.KindOf(err)
	if kind == fault.Internal {
		return &nodev1.Refusal{Kind: string(kind), Message: "internal error; the control plane's log says more"}
	}
	return &nodev1.Refusal{Kind: string(kind), Message: err.Error()}
}

// SignJWT signs one JWT-SVID.
func (s *Server) SignJWT(ctx context.Context, req *nodev1.SignJWTRequest) (*nodev1.SignJWTResponse, error) {
	caller, err := s.admitCall(ctx, req.GetTrustDomain())
	var res ca.JWTResult
	if err == nil {
		res, err = s.signJWT(ctx, caller, req)
	}
	if err != nil {
		s.refused(ctx, Refusal{Node: caller.Node, Action: "SignJWT", Object: req.GetSpiffeId(), Err: err})
		return nil, limit.GRPC(fmt.Errorf("sign a JWT-SVID: %w", err))
	}
	return &nodev1.SignJWTResponse{Token: res.Token, ExpiresAtUnix: res.ExpiresAt.Unix(), IssuedAtUnix: res.IssuedAt.Unix(), Ext: len(req.GetExt()) > 0}, nil
}

func (s *Server) signJWT(ctx context.Context, caller Caller, req *nodev1.SignJWTRequest) (ca.JWTResult, error) {
	entry, id, err := s.entitled(caller, req.GetEntry(), req.GetSpiffeId())
	if err != nil {
		return ca.JWTResult{}, err
	}
	if err := checkInstance(req.GetInstance()); err != nil {
		return ca.JWTResult{}, err
	}
	if n := len(req.GetAudience()); n == 0 || n > 32 {
		return ca.JWTResult{}, fault.New(fault.Invalid, "%d audiences: a JWT-SVID has 1 to 32", n)
	}
	for _, audience := range req.GetAudience() {
		if audience == "" || len(audience) > 2048 {
			return ca.JWTResult{}, fault.New(fault.Invalid, "an audience of %d bytes: 1 to 2048 are allowed", len(audience))
		}
	}
	return s.p.Authority.SignJWT(ctx, ca.JWTRequest{
		ID: id, Audience: req.GetAudience(), Ext: req.GetExt(), TTL: time.Duration(entry.GetJwtTtlSeconds()) * time.Second,
		Namespace: entry.GetNamespace(), Entry: req.GetEntry(), Node: caller.Node, Instance: req.GetInstance(),
	})
}

// Explain answers which entries come near.
func (s *Server) Explain(ctx context.Context, req *nodev1.ExplainRequest) (*nodev1.ExplainResponse, error) {
	caller, err := s.admitCall(ctx, req.GetTrustDomain())
	if err != nil {
		s.refused(ctx, Refusal{Node: caller.Node, Action: "Explain", Err: err})
		return nil, limit.GRPC(fmt.Errorf("explain: %w", err))
	}
	if len(req.GetSelectors()) > 256 {
		return nil, limit.GRPC(fault.New(fault.Invalid, "explain: %d selectors: at most 256", len(req.GetSelectors())))
	}
	if s.p.Explain == nil {
		return &nodev1.ExplainResponse{}, nil
	}
	candidates, err := s.p.Explain(ctx, caller.Node, req)
	if err != nil {
		s.p.Log.Error("explain failed", "node", caller.Node, "error", err)
		return nil, limit.GRPC(fmt.Errorf("explain: %w", err))
	}
	return &nodev1.ExplainResponse{Candidates: candidates}, nil
}
