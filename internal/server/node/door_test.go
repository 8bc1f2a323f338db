package node_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	nodev1 "github.com/legation-io/legation/api/node/v1"
	attestnode "github.com/legation-io/legation/internal/attest/node"
	"github.com/legation-io/legation/internal/fault"
	"github.com/legation-io/legation/internal/limit"
	"github.com/legation-io/legation/internal/server/node"
	"github.com/legation-io/legation/internal/server/node/nodetest"
	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/status"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// client is a connection that shows a certificate, or none.
func client(t testing.TB, p *nodetest.Plane, cert *tls.Certificate) *grpc.ClientConn {
	t.Helper()
	roots := x509.NewCertPool()
	roots.AddCert(p.Authority.Root)
	config := &tls.Config{MinVersion: tls.VersionTLS13, InsecureSkipVerify: true}
	if cert != nil {
		config.Certificates = []tls.Certificate{*cert}
	}
	conn, err := grpc.NewClient("passthrough:///"+p.Address, grpc.WithTransportCredentials(credentials.NewTLS(config)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}

func hello() *nodev1.Hello {
	return &nodev1.Hello{TrustDomain: "example.org", Protocol: 1, Version: "test"}
}

// attest runs one attestation and returns the node's certificate.
func attest(ctx context.Context, t testing.TB, conn *grpc.ClientConn, start *nodev1.AttestStart) (*tls.Certificate, error) {
	t.Helper()
	csr, key := nodetest.NewCSR(t, nil)
	if start.Csr == nil {
		start.Csr = csr
	}
	stream, err := nodev1.NewAttestationClient(conn).Attest(ctx)
	if err != nil {
		return nil, err
	}
	_ = stream.Send(&nodev1.AttestRequest{Step: &nodev1.AttestRequest_Start{Start: start}})
	res, err := stream.Recv()
	if err != nil {
		return nil, err
	}
	return &tls.Certificate{Certificate: res.GetResult().GetChain(), PrivateKey: key}, nil
}

func start(token string) *nodev1.AttestStart {
	return &nodev1.AttestStart{Hello: hello(), Method: attestnode.JoinToken, Payload: []byte(token)}
}

// attested is a node that has attested, and its connection.
func attested(t testing.TB, p *nodetest.Plane, name string) (*grpc.ClientConn, *tls.Certificate) {
	t.Helper()
	cert, err := attest(t.Context(), t, client(t, p, nil), start(p.Token(name)))
	if err != nil {
		t.Fatal(err)
	}
	return client(t, p, cert), cert
}

func entry(name string) *nodev1.Entry {
	return &nodev1.Entry{Name: "default/" + name, Namespace: "default", SpiffeId: "spiffe://example.org/ns/default/sa/" + name, Selectors: []string{"unix:uid:1"}}
}

func item(t testing.TB, name string) *nodev1.X509Item {
	csr, _ := nodetest.NewCSR(t, nil)
	return &nodev1.X509Item{Entry: "default/" + name, SpiffeId: "spiffe://example.org/ns/default/sa/" + name, Instance: "uid-1", Csr: csr}
}

func sign(t testing.TB, conn *grpc.ClientConn, items ...*nodev1.X509Item) []*nodev1.X509Result {
	t.Helper()
	res, err := nodev1.NewNodeClient(conn).SignX509(t.Context(), &nodev1.SignX509Request{TrustDomain: "example.org", Items: items})
	if err != nil {
		t.Fatal(err)
	}
	return res.GetResults()
}

func TestAttestationRefuses(t *testing.T) {
	p := nodetest.New(t)
	conn := client(t, p, nil)
	badSignature, _ := nodetest.NewCSR(t, nil)
	badSignature[len(badSignature)-1] ^= 1
	asServer, _ := nodetest.NewCSR(t, func(r *x509.CertificateRequest) { r.URIs = nodetest.URI("spiffe://example.org/legation/server") })
	withDNS, _ := nodetest.NewCSR(t, func(r *x509.CertificateRequest) { r.DNSNames = []string{"legation.example.org"} })
	for name, row := range map[string]struct {
		edit func(*nodev1.AttestStart)
		code codes.Code
	}{
		"another trust domain":                {func(s *nodev1.AttestStart) { s.Hello.TrustDomain = "evil.org" }, codes.InvalidArgument},
		"no hello":                            {func(s *nodev1.AttestStart) { s.Hello = nil }, codes.InvalidArgument},
		"a newer protocol":                    {func(s *nodev1.AttestStart) { s.Hello.Protocol = 2 }, codes.InvalidArgument},
		"an unknown method":                   {func(s *nodev1.AttestStart) { s.Method = "tpm" }, codes.InvalidArgument},
		"an empty CSR":                        {func(s *nodev1.AttestStart) { s.Csr = []byte{} }, codes.InvalidArgument},
		"a truncated CSR":                     {func(s *nodev1.AttestStart) { s.Csr = badSignature[:40] }, codes.InvalidArgument},
		"a CSR without possession of its key": {func(s *nodev1.AttestStart) { s.Csr = badSignature }, codes.InvalidArgument},
		"an oversized CSR":                    {func(s *nodev1.AttestStart) { s.Csr = make([]byte, 1<<20) }, codes.InvalidArgument},
		"a CSR for the server's identity":     {func(s *nodev1.AttestStart) { s.Csr = asServer }, codes.PermissionDenied},
		"a CSR that asks for a DNS name":      {func(s *nodev1.AttestStart) { s.Csr = withDNS }, codes.PermissionDenied},
		"a guessed token":                     {func(s *nodev1.AttestStart) { s.Payload = []byte("web-1.aaaaaaaaaaaaa.aaaa") }, codes.PermissionDenied},
		"an oversized proof":                  {func(s *nodev1.AttestStart) { s.Payload = make([]byte, 1<<17) }, codes.InvalidArgument},
	} {
		t.Run(name, func(t *testing.T) {
			token := p.Token("web-1")
			s := start(token)
			csr, _ := nodetest.NewCSR(t, nil)
			s.Csr = csr
			row.edit(s)
			if len(s.Csr) == 0 {
				s.Csr = []byte{0}
			}
			if _, err := attest(t.Context(), t, conn, s); status.Code(err) != row.code {
				t.Fatalf("%v; want %s", err, row.code)
			}
			if _, err := attest(t.Context(), t, conn, start(token)); err != nil {
				t.Fatalf("the refused attempt spent the token: %v", err)
			}
		})
	}
}

// A05 over the wire and over three replicas with one store.
func TestA05OneTokenOneWinnerOverThreeReplicas(t *testing.T) {
	wide := func(p *node.Params) {
		p.Limits.AttestationsPerIP = limit.Rate{PerSecond: 1e6, Burst: 1e6}
		p.Limits.AttestationsAtOnce = 1000
	}
	first := nodetest.New(t, wide)
	planes := []*nodetest.Plane{first, nodetest.Over(t, first.Store, first.Authority, wide), nodetest.Over(t, first.Store, first.Authority, wide)}
	token := first.Token("web-1")
	var won atomic.Int32
	var wg sync.WaitGroup
	for _, p := range planes {
		conn := client(t, p, nil)
		for range 67 {
			wg.Go(func() {
				_, err := attest(t.Context(), t, conn, start(token))
				switch status.Code(err) {
				case codes.OK:
					won.Add(1)
				case codes.PermissionDenied, codes.AlreadyExists:
				default:
					t.Errorf("a loser reads %v", err)
				}
			})
		}
	}
	wg.Wait()
	if won.Load() != 1 || len(first.Authority.Signed()) != 1 {
		t.Fatalf("%d won, %d certificates signed; want 1 and 1", won.Load(), len(first.Authority.Signed()))
	}
}

func TestGuessingIsLimitedPerAddress(t *testing.T) {
	p := nodetest.New(t, func(p *node.Params) { p.Limits.AttestationsPerIP = limit.Rate{PerSecond: 0.01, Burst: 3} })
	conn := client(t, p, nil)
	for range 3 {
		if _, err := attest(t.Context(), t, conn, start("guess")); status.Code(err) != codes.PermissionDenied {
			t.Fatal(err)
		}
	}
	_, err := attest(t.Context(), t, conn, start(p.Token("web-1")))
	if status.Code(err) != codes.ResourceExhausted {
		t.Fatalf("%v; want limited", err)
	}
	if d, ok := limit.RetryAfter(err); !ok || d < time.Second {
		t.Fatalf("it says to try again in %v, %v", d, ok)
	}
}

// A01: an agent asks for every identity but those of its own entries.
func TestA01EveryOtherIdentityIsRefusedAndAudited(t *testing.T) {
	p := nodetest.New(t)
	conn, _ := attested(t, p, "web-1")
	attested(t, p, "db-1")
	p.SetEntry("web-1", entry("web"))
	p.SetEntry("db-1", entry("db"))
	blocked := entry("blocked")
	blocked.Blocked = true
	p.SetEntry("web-1", blocked)
	for name, it := range map[string]*nodev1.X509Item{
		"another node's entry":                 {Entry: "default/db", SpiffeId: "spiffe://example.org/ns/default/sa/db"},
		"its own entry with another node's id": {Entry: "default/web", SpiffeId: "spiffe://example.org/ns/default/sa/db"},
		"another node's entry with its own id": {Entry: "default/db", SpiffeId: "spiffe://example.org/ns/default/sa/web"},
		"the server's own id":                  {Entry: "default/web", SpiffeId: "spiffe://example.org/legation/server"},
		"another agent's id":                   {Entry: "default/web", SpiffeId: "spiffe://example.org/legation/agent/db-1"},
		"its own agent id":                     {Entry: "default/web", SpiffeId: "spiffe://example.org/legation/agent/web-1"},
		"the trust domain's id":                {Entry: "default/web", SpiffeId: "spiffe://example.org"},
		"another trust domain":                 {Entry: "default/web", SpiffeId: "spiffe://evil.org/ns/default/sa/web"},
		"a path that normalises to its own":    {Entry: "default/web", SpiffeId: "spiffe://example.org/ns/default/sa/../sa/web"},
		"an escaped path":                      {Entry: "default/web", SpiffeId: "spiffe://example.org/ns/default/sa/%77eb"},
		"its own id in another case":           {Entry: "default/web", SpiffeId: "SPIFFE://example.org/ns/default/sa/web"},
		"an entry that does not exist":         {Entry: "default/none", SpiffeId: "spiffe://example.org/ns/default/sa/web"},
		"no entry":                             {SpiffeId: "spiffe://example.org/ns/default/sa/web"},
		"a revoked identity":                   {Entry: "default/blocked", SpiffeId: "spiffe://example.org/ns/default/sa/blocked"},
	} {
		t.Run(name, func(t *testing.T) {
			before := len(p.Refusals())
			signed := len(p.Authority.Signed())
			csr, _ := nodetest.NewCSR(t, nil)
			it.Csr = csr
			res := sign(t, conn, it)[0]
			if len(res.GetChain()) > 0 || res.GetRefusal() == nil || len(p.Authority.Signed()) != signed {
				t.Fatalf("signed: %v", res)
			}
			refusals := p.Refusals()
			if len(refusals) != before+1 || refusals[before].Node != "web-1" || refusals[before].Object != it.SpiffeId {
				t.Fatalf("audited: %+v", refusals[before:])
			}
			_, err := nodev1.NewNodeClient(conn).SignJWT(t.Context(), &nodev1.SignJWTRequest{TrustDomain: "example.org", Entry: it.Entry, SpiffeId: it.SpiffeId, Audience: []string{"x"}})
			if err == nil || len(p.Authority.JWTs()) > 0 {
				t.Fatal("a JWT-SVID was signed")
			}
		})
	}
	t.Run("its own entry with further claims", func(t *testing.T) {
		before := len(p.Authority.JWTs())
		res, err := nodev1.NewNodeClient(conn).SignJWT(t.Context(), &nodev1.SignJWTRequest{
			TrustDomain: "example.org", Entry: "default/web", SpiffeId: "spiffe://example.org/ns/default/sa/web", Audience: []string{"x"}, Ext: map[string]string{"a": "1"}})
		if err != nil || !res.Ext {
			t.Fatalf("%v, %v", res, err)
		}
		if jwts := p.Authority.JWTs(); len(jwts) != before+1 || jwts[before].Ext["a"] != "1" || jwts[before].Entry != "default/web" {
			t.Errorf("asked of the authority: %+v", jwts[before:])
		}
	})
	t.Run("its own entry with a CSR for another id", func(t *testing.T) {
		it := item(t, "web")
		it.Csr, _ = nodetest.NewCSR(t, func(r *x509.CertificateRequest) { r.URIs = nodetest.URI("spiffe://example.org/ns/default/sa/db") })
		if res := sign(t, conn, it)[0]; res.GetRefusal().GetKind() != "denied" {
			t.Fatalf("%v", res)
		}
	})
	if res := sign(t, conn, item(t, "web"))[0]; len(res.GetChain()) != 2 {
		t.Fatalf("its own identity: %v", res)
	}
}

func TestNamesAndLifetimeComeFromTheEntry(t *testing.T) {
	p := nodetest.New(t)
	conn, _ := attested(t, p, "web-1")
	e := entry("web")
	e.DnsNames, e.X509TtlSeconds, e.JwtTtlSeconds, e.IncludeOwnIp = []string{"web.example.org"}, 600, 60, true
	p.SetEntry("web-1", e)
	it := item(t, "web")
	it.IpAddresses = [][]byte{netip.MustParseAddr("192.0.2.7").AsSlice()}
	if res := sign(t, conn, it)[0]; res.GetRefusal() != nil {
		t.Fatal(res)
	}
	signed := p.Authority.Signed()
	r := signed[len(signed)-1]
	if r.TTL != 10*time.Minute || len(r.DNSNames) != 1 || r.IPs[0] != netip.MustParseAddr("192.0.2.7") || r.Node != "web-1" || r.Entry != "default/web" || r.Instance != "uid-1" || r.Namespace != "default" {
		t.Fatalf("%+v", r)
	}
}

// A16: every name of a request is judged, not one name N times.
func TestA16OneForbiddenNameAmongManyIsFound(t *testing.T) {
	p := nodetest.New(t)
	conn, _ := attested(t, p, "web-1")
	e := entry("web")
	allowed := []string{"a.example.org", "b.example.org", "c.example.org", "d.example.org", "e.example.org"}
	e.DnsNames = allowed
	e.IncludeOwnIp = true
	p.SetEntry("web-1", e)
	good := item(t, "web")
	good.Csr, _ = nodetest.NewCSR(t, func(r *x509.CertificateRequest) { r.DNSNames = allowed })
	if res := sign(t, conn, good)[0]; res.GetRefusal() != nil {
		t.Fatalf("all allowed: %v", res)
	}
	for k := range allowed {
		names := append([]string(nil), allowed...)
		names[k] = "evil.example.org"
		it := item(t, "web")
		it.Csr, _ = nodetest.NewCSR(t, func(r *x509.CertificateRequest) { r.DNSNames = names })
		if res := sign(t, conn, it)[0]; res.GetRefusal().GetKind() != "denied" || !strings.Contains(res.GetRefusal().GetMessage(), "evil") {
			t.Errorf("name %d forbidden: %v", k, res)
		}
	}
	for k := range 3 {
		it := item(t, "web")
		for i := range 3 {
			raw := []byte{192, 0, 2, byte(i + 1)}
			if i == k {
				raw = []byte{127, 0, 0, 1}
			}
			it.IpAddresses = append(it.IpAddresses, raw)
		}
		if res := sign(t, conn, it)[0]; res.GetRefusal() == nil {
			t.Errorf("address %d forbidden: signed", k)
		}
	}
	plain := entry("plain")
	p.SetEntry("web-1", plain)
	it := item(t, "plain")
	it.IpAddresses = [][]byte{{192, 0, 2, 1}}
	if res := sign(t, conn, it)[0]; res.GetRefusal().GetKind() != "denied" {
		t.Errorf("an address where the entry includes none: %v", res)
	}
}

// A15: one bad item refuses that item alone, wherever it stands.
func TestA15BatchIsJudgedPerItem(t *testing.T) {
	p := nodetest.New(t)
	conn, _ := attested(t, p, "web-1")
	p.SetEntry("web-1", entry("web"))
	p.SetEntry("db-1", entry("db"))
	for k := range 5 {
		var items []*nodev1.X509Item
		for i := range 5 {
			name := "web"
			if i == k {
				name = "db"
			}
			items = append(items, item(t, name))
		}
		before := len(p.Authority.Signed())
		for i, r := range sign(t, conn, items...) {
			if (r.GetRefusal() != nil) != (i == k) || (len(r.GetChain()) > 0) == (i == k) {
				t.Fatalf("bad item %d: result %d is %v", k, i, r)
			}
			if i != k {
				leaf, err := x509.ParseCertificate(r.GetChain()[0])
				csr, _ := x509.ParseCertificateRequest(items[i].GetCsr())
				if err != nil || leaf.URIs[0].String() != items[i].GetSpiffeId() || !csr.PublicKey.(*ecdsa.PublicKey).Equal(leaf.PublicKey) {
					t.Fatalf("result %d is not for item %d", i, i)
				}
			}
		}
		if got := len(p.Authority.Signed()) - before; got != 4 {
			t.Fatalf("%d signed; want 4", got)
		}
	}
	items := make([]*nodev1.X509Item, 257)
	for i := range items {
		items[i] = &nodev1.X509Item{}
	}
	_, err := nodev1.NewNodeClient(conn).SignX509(t.Context(), &nodev1.SignX509Request{TrustDomain: "example.org", Items: items})
	if status.Code(err) != codes.InvalidArgument {
		t.Fatalf("a batch of 257: %v", err)
	}
}

// A13: renewal wants the current certificate's key, of a node that is not banned.
func TestA13RenewalNeedsTheCurrentCertificate(t *testing.T) {
	p := nodetest.New(t)
	conn, first := attested(t, p, "web-1")
	renew := func(conn *grpc.ClientConn) (*tls.Certificate, error) {
		csr, key := nodetest.NewCSR(t, nil)
		res, err := nodev1.NewNodeClient(conn).Renew(t.Context(), &nodev1.RenewRequest{TrustDomain: "example.org", Csr: csr})
		if err != nil {
			return nil, err
		}
		return &tls.Certificate{Certificate: res.GetChain(), PrivateKey: key}, nil
	}
	denied := func(what string, conn *grpc.ClientConn) {
		t.Helper()
		if _, err := renew(conn); status.Code(err) != codes.PermissionDenied {
			t.Fatalf("%s: %v; want denied", what, err)
		}
	}
	denied("without a certificate", client(t, p, nil))
	_, key := nodetest.NewCSR(t, nil)
	leaf := p.Authority.Issue(attestnode.ServerID(p.TrustDomain), key.Public(), time.Hour, x509.ExtKeyUsageClientAuth)
	denied("as the server", client(t, p, &tls.Certificate{Certificate: [][]byte{leaf.Raw, p.Authority.Issuing.Raw}, PrivateKey: key}))
	id, _ := attestnode.ID(p.TrustDomain, "web-1")
	forged := p.Authority.Issue(id, key.Public(), time.Hour, x509.ExtKeyUsageClientAuth)
	denied("with a certificate of the right name that was never issued to the node", client(t, p, &tls.Certificate{Certificate: [][]byte{forged.Raw, p.Authority.Issuing.Raw}, PrivateKey: key}))
	id, _ = attestnode.ID(p.TrustDomain, "web-9")
	stranger := p.Authority.Issue(id, key.Public(), time.Hour, x509.ExtKeyUsageClientAuth)
	denied("as a node that never attested", client(t, p, &tls.Certificate{Certificate: [][]byte{stranger.Raw, p.Authority.Issuing.Raw}, PrivateKey: key}))

	second, err := renew(conn)
	if err != nil {
		t.Fatal(err)
	}
	third, err := renew(client(t, p, second))
	if err != nil {
		t.Fatal(err)
	}
	denied("with a certificate superseded twice", client(t, p, first))
	mismatch := client(t, p, &tls.Certificate{Certificate: third.Certificate, PrivateKey: key})
	if _, err := renew(mismatch); err == nil {
		t.Fatal("renewed without the certificate's key")
	}
	asOther, _ := nodetest.NewCSR(t, func(r *x509.CertificateRequest) { r.URIs = nodetest.URI("spiffe://example.org/legation/agent/db-1") })
	_, err = nodev1.NewNodeClient(client(t, p, third)).Renew(t.Context(), &nodev1.RenewRequest{TrustDomain: "example.org", Csr: asOther})
	if status.Code(err) != codes.PermissionDenied {
		t.Fatalf("a CSR for another agent: %v", err)
	}
	if _, err := p.Registry.Ban(t.Context(), "web-1", "stolen", "test"); err != nil {
		t.Fatal(err)
	}
	denied("while banned", client(t, p, third))
	if _, err := attest(t.Context(), t, client(t, p, nil), start(p.Token("web-1"))); status.Code(err) != codes.PermissionDenied {
		t.Fatalf("attesting while banned: %v", err)
	}
	if _, err := p.Registry.Lift(t.Context(), "web-1", "test"); err != nil {
		t.Fatal(err)
	}
	if _, err := renew(client(t, p, third)); err != nil {
		t.Fatalf("after the ban: %v", err)
	}
}

func TestBanEndsEveryStreamAtOnce(t *testing.T) {
	p := nodetest.New(t)
	conn, _ := attested(t, p, "web-1")
	bystander, _ := attested(t, p, "db-1")
	streams := openAll(t, conn)
	others := openAll(t, bystander)
	if _, err := p.Registry.Ban(t.Context(), "web-1", "stolen", "test"); err != nil {
		t.Fatal(err)
	}
	banned := time.Now()
	for name, recv := range streams {
		err := drain(recv)
		if status.Code(err) != codes.PermissionDenied || !strings.Contains(err.Error(), "stolen") {
			t.Errorf("%s: %v; want denied with the reason", name, err)
		}
	}
	if d := time.Since(banned); d > 10*time.Second {
		t.Errorf("it took %s", d)
	}
	for name, recv := range others {
		got := make(chan error, 1)
		go func() { got <- drain(recv) }()
		select {
		case err := <-got:
			t.Errorf("the %s stream of a bystander ended: %v", name, err)
		case <-time.After(50 * time.Millisecond):
		}
	}
	if err := bystander.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := nodev1.NewNodeClient(conn).SignX509(t.Context(), &nodev1.SignX509Request{TrustDomain: "example.org"}); status.Code(err) != codes.PermissionDenied {
		t.Errorf("signing while banned: %v", err)
	}
}

// openAll opens the three streams and returns how to receive from each.
func openAll(t *testing.T, conn *grpc.ClientConn) map[string]func() error {
	t.Helper()
	c := nodev1.NewNodeClient(conn)
	trust, err := c.Trust(t.Context())
	if err == nil {
		err = trust.Send(&nodev1.TrustRequest{Message: &nodev1.TrustRequest_Open{Open: &nodev1.TrustOpen{Hello: hello()}}})
	}
	if err == nil {
		_, err = trust.Recv()
	}
	if err != nil {
		t.Fatal(err)
	}
	config, err := c.Config(t.Context())
	if err == nil {
		err = config.Send(&nodev1.ConfigRequest{Message: &nodev1.ConfigRequest_Hello{Hello: hello()}})
	}
	if err == nil {
		_, err = config.Recv()
	}
	if err != nil {
		t.Fatal(err)
	}
	report, err := c.Report(t.Context())
	if err == nil {
		err = report.Send(&nodev1.ReportRequest{Hello: hello()})
	}
	if err == nil {
		_, err = report.Recv()
	}
	if err != nil {
		t.Fatal(err)
	}
	return map[string]func() error{
		"trust":  func() error { _, err := trust.Recv(); return err },
		"config": func() error { _, err := config.Recv(); return err },
		"report": func() error { _, err := report.Recv(); return err },
	}
}

func drain(recv func() error) error {
	for range 1000 {
		if err := recv(); err != nil {
			return err
		}
	}
	return errors.New("it goes on and on")
}

func TestStreamsEndWithTheirCertificate(t *testing.T) {
	p := nodetest.New(t)
	p.Authority.SetTTL(2 * time.Second)
	conn, _ := attested(t, p, "web-1")
	for name, recv := range openAll(t, conn) {
		if err := drain(recv); status.Code(err) != codes.PermissionDenied || !strings.Contains(err.Error(), "expired") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestAttestingAgainEndsStreamsOfTheOldCertificate(t *testing.T) {
	p := nodetest.New(t)
	conn, _ := attested(t, p, "web-1")
	streams := openAll(t, conn)
	attested(t, p, "web-1")
	for name, recv := range streams {
		if err := drain(recv); status.Code(err) != codes.PermissionDenied {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestStreamHellos(t *testing.T) {
	p := nodetest.New(t)
	conn, _ := attested(t, p, "web-1")
	for name, h := range map[string]*nodev1.Hello{
		"another trust domain": {TrustDomain: "evil.org", Protocol: 1},
		"no protocol":          {TrustDomain: "example.org"},
		"a newer protocol":     {TrustDomain: "example.org", Protocol: 2},
		"none":                 nil,
	} {
		c := nodev1.NewNodeClient(conn)
		trust, _ := c.Trust(t.Context())
		_ = trust.Send(&nodev1.TrustRequest{Message: &nodev1.TrustRequest_Open{Open: &nodev1.TrustOpen{Hello: h}}})
		_, err1 := trust.Recv()
		config, _ := c.Config(t.Context())
		_ = config.Send(&nodev1.ConfigRequest{Message: &nodev1.ConfigRequest_Hello{Hello: h}})
		_, err2 := config.Recv()
		report, _ := c.Report(t.Context())
		_ = report.Send(&nodev1.ReportRequest{Hello: h})
		_, err3 := report.Recv()
		for _, err := range []error{err1, err2, err3} {
			if status.Code(err) != codes.InvalidArgument {
				t.Errorf("%s: %v", name, err)
			}
		}
	}
	for name, call := range map[string]func(nodev1.NodeClient) error{
		"SignX509": func(c nodev1.NodeClient) error {
			_, err := c.SignX509(t.Context(), &nodev1.SignX509Request{})
			return err
		},
		"SignJWT": func(c nodev1.NodeClient) error {
			_, err := c.SignJWT(t.Context(), &nodev1.SignJWTRequest{})
			return err
		},
		"Renew": func(c nodev1.NodeClient) error { _, err := c.Renew(t.Context(), &nodev1.RenewRequest{}); return err },
		"Explain": func(c nodev1.NodeClient) error {
			_, err := c.Explain(t.Context(), &nodev1.ExplainRequest{})
			return err
		},
	} {
		if err := call(nodev1.NewNodeClient(conn)); status.Code(err) != codes.InvalidArgument {
			t.Errorf("%s without a trust domain: %v", name, err)
		}
	}
}

func TestLimitsPerNode(t *testing.T) {
	p := nodetest.New(t, func(p *node.Params) {
		p.Limits.CSRsPerNode = limit.Rate{PerSecond: 0.1, Burst: 2}
		p.Limits.StreamsPerNode = 2
	})
	p.SetEntry("web-1", entry("web"))
	p.SetEntry("db-1", entry("db"))
	conn, _ := attested(t, p, "web-1")
	other, _ := attested(t, p, "db-1")
	sign(t, conn, item(t, "web"), item(t, "web"))
	_, err := nodev1.NewNodeClient(conn).SignX509(t.Context(), &nodev1.SignX509Request{TrustDomain: "example.org", Items: []*nodev1.X509Item{item(t, "web")}})
	if _, ok := limit.RetryAfter(err); status.Code(err) != codes.ResourceExhausted || !ok {
		t.Fatalf("%v; want limited with a time", err)
	}
	sign(t, other, item(t, "db"))
	var last error
	for range 3 {
		stream, err := nodev1.NewNodeClient(conn).Report(t.Context())
		if err == nil {
			_ = stream.Send(&nodev1.ReportRequest{Hello: hello()}) // EOF when it was refused already: Recv says why
			_, err = stream.Recv()
		}
		last = err
	}
	if status.Code(last) != codes.ResourceExhausted {
		t.Fatalf("a third stream: %v", last)
	}
	_, err = nodev1.NewNodeClient(other).SignX509(t.Context(), &nodev1.SignX509Request{TrustDomain: "example.org",
		Items: []*nodev1.X509Item{{Csr: make([]byte, 5<<20)}}})
	if status.Code(err) != codes.ResourceExhausted {
		t.Fatalf("a message of 5 MiB: %v", err)
	}
}

func TestInternalErrorsAreNotShown(t *testing.T) {
	p := nodetest.New(t)
	p.SetEntry("web-1", entry("web"))
	conn, _ := attested(t, p, "web-1")
	p.Authority.Fail(fmt.Errorf("the key is in /secret/place"))
	res := sign(t, conn, item(t, "web"))[0]
	if res.GetRefusal().GetKind() != "internal" || strings.Contains(res.GetRefusal().GetMessage(), "secret") {
		t.Fatalf("%v", res)
	}
}

// A64: what the door says and logs never repeats a token. A06: the proof
// decides which node it is, nothing else in the message does.
func TestA06NodeComesFromTheProofAlone(t *testing.T) {
	p := nodetest.New(t)
	token := p.Token("web-1")
	s := start(token)
	s.Csr, _ = nodetest.NewCSR(t, func(r *x509.CertificateRequest) { r.URIs = nodetest.URI("spiffe://example.org/legation/agent/db-1") })
	if _, err := attest(t.Context(), t, client(t, p, nil), s); status.Code(err) != codes.PermissionDenied {
		t.Fatalf("%v", err)
	}
	for _, r := range p.Refusals() {
		if secret := token[strings.LastIndexByte(token, '.')+1:]; strings.Contains(fmt.Sprintf("%+v", r), secret) {
			t.Fatalf("a refusal repeats the token: %+v", r)
		}
	}
}

func FuzzAttestStart(f *testing.F) {
	p := nodetest.New(f)
	conn := client(f, p, nil)
	token := p.Token("web-1")
	f.Add("join_token", []byte(token[:20]), []byte{0x30, 0})
	f.Add("", []byte{}, []byte{})
	f.Fuzz(func(t *testing.T, method string, payload, csr []byte) {
		s := &nodev1.AttestStart{Hello: hello(), Method: strings.ToValidUTF8(method, "?"), Payload: payload, Csr: csr}
		stream, err := nodev1.NewAttestationClient(conn).Attest(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		_ = stream.Send(&nodev1.AttestRequest{Step: &nodev1.AttestRequest_Start{Start: s}})
		res, err := stream.Recv()
		if err == nil || errors.Is(err, io.EOF) || status.Code(err) == codes.Internal {
			t.Fatalf("%v, %v", res, err)
		}
	})
}

// What blocks a node is asked before its proof is spent: when the block is
// lifted the same token admits it.
func TestABlockedNodeKeepsItsToken(t *testing.T) {
	var blocked atomic.Bool
	blocked.Store(true)
	p := nodetest.New(t, func(params *node.Params) {
		params.Blocked = func(string) error {
			if blocked.Load() {
				return fault.New(fault.Denied, "node web-1 is revoked")
			}
			return nil
		}
	})
	token := p.Token("web-1")
	if _, err := attest(t.Context(), t, client(t, p, nil), start(token)); status.Code(err) != codes.PermissionDenied {
		t.Fatalf("a blocked node is answered %v", err)
	}
	blocked.Store(false)
	if _, err := attest(t.Context(), t, client(t, p, nil), start(token)); err != nil {
		t.Fatalf("with the block lifted: %v", err)
	}
}
