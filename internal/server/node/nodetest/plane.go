// Package nodetest is a control plane for tests of the door for agents and
// of the agent's link: the real door, store, registry, tokens and engine over
// real TLS, with a throw-away authority and declared things set by the test.
package nodetest

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"log/slog"
	"math/big"
	"net"
	"slices"
	"sync"
	"testing"
	"time"

	nodev1 "github.com/legation-io/legation/api/node/v1"
	"github.com/legation-io/legation/internal/acks"
	attestnode "github.com/legation-io/legation/internal/attest/node"
	"github.com/legation-io/legation/internal/attest/node/jointoken"
	"github.com/legation-io/legation/internal/attest/node/registry"
	"github.com/legation-io/legation/internal/ca"
	"github.com/legation-io/legation/internal/clock"
	"github.com/legation-io/legation/internal/distribute"
	"github.com/legation-io/legation/internal/objects"
	"github.com/legation-io/legation/internal/server/node"
	"github.com/legation-io/legation/internal/store/memory"
	"github.com/legation-io/legation/sdk/chaincheck"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/protobuf/proto"
)

// Plane is one replica.
type Plane struct {
	TrustDomain spiffeid.TrustDomain
	Clock       *clock.Skewed
	Store       *memory.Store
	Authority   *Authority
	Registry    *registry.Registry
	Tokens      *jointoken.Tokens
	Engine      *distribute.Engine
	Acks        *acks.Ledger
	Server      *node.Server
	// Address is where it listens; it stays over Stop and Start.
	Address string

	t      testing.TB
	params node.Params
	grpc   *grpc.Server
	done   chan struct{}
	cert   *tls.Certificate // the next Start shows it; nil makes a new one
	last   *tls.Certificate // what is shown now

	mu       sync.Mutex
	compile  func(node string, s *nodev1.Subject) ([]*distribute.Resource, error)
	refusals []node.Refusal
}

// Option changes the parameters of the door.
type Option func(*node.Params)

// New starts a replica on loopback; the test's end stops it.
func New(t testing.TB, options ...Option) *Plane {
	t.Helper()
	return Over(t, memory.New(), nil, options...)
}

// Over starts a replica over a store; authority may be another replica's.
func Over(t testing.TB, st *memory.Store, authority *Authority, options ...Option) *Plane {
	t.Helper()
	p := &Plane{t: t, TrustDomain: spiffeid.RequireTrustDomainFromString("example.org"), Clock: &clock.Skewed{}, Store: st,
		Authority: authority}
	if authority == nil {
		p.Authority = NewAuthority(t, p.TrustDomain, p.Clock)
	}
	p.Registry = registry.New(registry.Params{Store: st, TrustDomain: p.TrustDomain, Clock: p.Clock})
	p.Tokens = jointoken.New(jointoken.Params{Store: st, TrustDomain: p.TrustDomain, Clock: p.Clock})
	p.Engine = distribute.New(distribute.Params{})
	p.Acks = acks.New(acks.Params{})
	params := node.Params{
		TrustDomain: p.TrustDomain, Authority: p.Authority, Registry: p.Registry,
		Attestors: map[string]attestnode.Attestor{p.Tokens.Method(): p.Tokens},
		Subjects:  p, Engine: p.Engine, Acks: p.Acks,
		Objects: objects.New(objects.Params{Store: st, TrustDomain: p.TrustDomain, Clock: p.Clock}),
		Bundle:  func() *nodev1.Bundle { return p.Authority.Bundle(1) },
		Refused: func(_ context.Context, r node.Refusal) {
			p.mu.Lock()
			p.refusals = append(p.refusals, r)
			p.mu.Unlock()
		},
		Clock: p.Clock, Log: slog.New(slog.DiscardHandler), Version: "test",
	}
	for _, o := range options {
		o(&params)
	}
	p.params = params
	p.Server = node.New(params)
	ctx, cancel := context.WithCancel(context.Background())
	watching := make(chan struct{})
	go func() { defer close(watching); _ = p.Registry.Run(ctx) }()
	t.Cleanup(func() { cancel(); <-watching; st.Close() })
	p.SetTrust("all", "bundle", p.TrustDomain.Name(), params.Bundle())
	p.Start()
	t.Cleanup(p.Stop)
	return p
}

// Start listens, at the same address as before if there was one.
func (p *Plane) Start() {
	p.t.Helper()
	address := p.Address
	if address == "" {
		address = "127.0.0.1:0"
	}
	var l net.Listener
	var err error
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(20 * time.Millisecond) {
		if l, err = net.Listen("tcp", address); err == nil {
			break
		}
		if time.Now().After(deadline) {
			p.t.Fatal(err)
		}
	}
	p.Address = l.Addr().String()
	p.grpc = grpc.NewServer(append(p.Server.ServerOptions(), grpc.Creds(credentials.NewTLS(p.tls())))...)
	p.Server.Register(p.grpc)
	done, server := make(chan struct{}), p.grpc
	p.done = done
	go func() { defer close(done); _ = server.Serve(l) }()
}

// Stop ends every connection, as a killed process does.
func (p *Plane) Stop() {
	if p.grpc == nil {
		return
	}
	p.grpc.Stop()
	<-p.done
	p.Server.Wait()
	p.grpc, p.cert = nil, nil
}

// StopKeepingCertificate is Stop, and the next Start shows the same
// certificate.
func (p *Plane) StopKeepingCertificate() {
	last := p.last
	p.Stop()
	p.cert = last
}

// ServerSerial is of the certificate that is shown now.
func (p *Plane) ServerSerial() *big.Int {
	leaf, err := x509.ParseCertificate(p.last.Certificate[0])
	if err != nil {
		p.t.Fatal(err)
	}
	return leaf.SerialNumber
}

func (p *Plane) tls() *tls.Config {
	if p.last = p.cert; p.last == nil {
		csr, k := NewCSR(p.t, nil)
		res := p.params.Authority.SignX509(context.Background(), []ca.X509Request{{Profile: ca.ProfileServer, CSR: csr, ID: attestnode.ServerID(p.TrustDomain), Namespace: "system"}})[0]
		if res.Err != nil {
			p.t.Fatal(res.Err)
		}
		// The root is shown too, for agents that pinned its hash.
		p.last = &tls.Certificate{Certificate: append(res.Chain, p.Root().Raw), PrivateKey: k}
	}
	return &tls.Config{
		MinVersion: tls.VersionTLS13, SessionTicketsDisabled: true, ClientAuth: tls.RequestClientCert,
		Certificates: []tls.Certificate{*p.last},
		VerifyConnection: func(s tls.ConnectionState) error {
			if len(s.PeerCertificates) == 0 {
				return nil
			}
			_, err := chaincheck.Verify(chaincheck.Params{Chain: s.PeerCertificates, Usage: chaincheck.Client, Revocation: chaincheck.Off,
				Now: p.Clock.Now(), Roots: chaincheck.Roots{p.TrustDomain: {p.Root()}}})
			return err
		},
	}
}

// Root is the trust domain's first root.
func (p *Plane) Root() *x509.Certificate {
	root, err := x509.ParseCertificate(p.params.Bundle().GetX509Roots()[0])
	if err != nil {
		p.t.Fatal(err)
	}
	return root
}

// Token makes a join token.
func (p *Plane) Token(name string) string {
	p.t.Helper()
	token, _, err := p.Tokens.Create(context.Background(), jointoken.Request{Node: name, Actor: "test"})
	if err != nil {
		p.t.Fatal(err)
	}
	return token
}

// SetEntry gives a node an entry and pushes it.
func (p *Plane) SetEntry(name string, e *nodev1.Entry) {
	p.SetTrust(node.NodeScope(name), "entry", e.GetName(), e)
}

// RemoveEntry takes an entry away.
func (p *Plane) RemoveEntry(name, entry string) {
	p.Engine.Apply(distribute.Change{Scope: node.NodeScope(name), Type: "entry", Name: entry})
}

// SetTrust puts a trust resource into a scope.
func (p *Plane) SetTrust(scope distribute.Scope, typ, name string, m proto.Message) {
	body, err := proto.MarshalOptions{Deterministic: true}.Marshal(m)
	if err != nil {
		p.t.Fatal(err)
	}
	p.Engine.Apply(distribute.Change{Scope: scope, Resource: distribute.NewResource(typ, name, body)})
}

// SetCompile sets how subjects are compiled and recompiles all.
func (p *Plane) SetCompile(f func(node string, s *nodev1.Subject) ([]*distribute.Resource, error)) {
	p.mu.Lock()
	p.compile = f
	p.mu.Unlock()
	p.Server.Recompile(nil)
}

// Compile implements node.SubjectCompiler.
func (p *Plane) Compile(name string, s *nodev1.Subject) ([]*distribute.Resource, error) {
	p.mu.Lock()
	f := p.compile
	p.mu.Unlock()
	if f == nil {
		return nil, nil
	}
	return f(name, s)
}

// Refusals is what the door refused so far.
func (p *Plane) Refusals() []node.Refusal {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.refusals)
}

// Eventually waits for a condition.
func Eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); !ok(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not within a minute: %s", what)
		}
	}
}
