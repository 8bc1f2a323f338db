package e2e

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"errors"
	"io"
	"net/url"
	"strings"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/status"

	nodev1 "github.com/legation-io/legation/api/node/v1"
	"github.com/legation-io/legation/internal/durable"
	"github.com/legation-io/legation/internal/sealed"
	"github.com/legation-io/legation/test/e2e/world"
)

// stolen is the key and certificate of a node's agent, read as only root can.
func stolen(t *testing.T, n *world.Node) *tls.Certificate {
	t.Helper()
	box, err := sealed.Open(durable.OS, n.DataDir+"/cache")
	if err != nil {
		t.Fatal(err)
	}
	raw, err := box.Read("identity")
	if err != nil {
		t.Fatal(err)
	}
	var stored struct {
		Version int
		Key     []byte
		Chain   [][]byte
		Roots   [][]byte
		RenewAt int64
	}
	if _, err := asn1.Unmarshal(raw, &stored); err != nil {
		t.Fatal(err)
	}
	key, err := x509.ParsePKCS8PrivateKey(stored.Key)
	if err != nil {
		t.Fatal(err)
	}
	return &tls.Certificate{Certificate: stored.Chain, PrivateKey: key}
}

// thief is a program anywhere with the stolen key of n1's agent.
type thief struct {
	t    *testing.T
	conn *grpc.ClientConn
	nodev1.NodeClient
}

func newThief(t *testing.T, w *world.World, cert *tls.Certificate) *thief {
	t.Helper()
	conn, err := grpc.NewClient("passthrough:///"+w.Server.Listen, grpc.WithTransportCredentials(credentials.NewTLS(&tls.Config{InsecureSkipVerify: true, Certificates: []tls.Certificate{*cert}})))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return &thief{t, conn, nodev1.NewNodeClient(conn)}
}

func csrFor(t *testing.T, template x509.CertificateRequest) []byte {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, &template, key)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

func uri(t *testing.T, id string) []*url.URL {
	t.Helper()
	u, err := url.Parse(id)
	if err != nil {
		t.Fatal(err)
	}
	return []*url.URL{u}
}

// sign asks for one certificate; the error is the item's refusal, too.
func (a *thief) sign(entry, id string, csr []byte) error {
	r, err := a.SignX509(a.t.Context(), &nodev1.SignX509Request{TrustDomain: world.TrustDomain, Items: []*nodev1.X509Item{{Entry: entry, SpiffeId: id, Instance: "x", Csr: csr}}})
	if err != nil {
		return err
	}
	if f := r.Results[0].GetRefusal(); f != nil {
		return errors.New(f.Kind + ": " + f.Message)
	}
	return nil
}

// A01, A13, A15, A16: whoever has an agent's key gets what that node has, and
// nothing else, by no spelling and in no batch.
func TestA01AStolenAgentKeyGetsNothingOfOtherNodes(t *testing.T) {
	t.Parallel()
	w := world.Start(t)
	n1, n2 := w.Join("n1"), w.Join("n2")
	w.Apply(world.Identity("mine", "n1", "unix:uid:1") + world.Identity("other", "n2", "unix:uid:1"))
	a := newThief(t, w, stolen(t, n1))
	mine, other := world.ID("mine"), world.ID("other")
	td := "spiffe://" + world.TrustDomain
	plain := csrFor(t, x509.CertificateRequest{})
	world.Until(t, world.Patience, "the thief gets what is the node's", func() error { return a.sign("default/mine", mine, plain) })

	for _, row := range []struct {
		name, entry, id string
		csr             []byte
	}{
		{"another node's entry", "default/other", other, plain},
		{"another node's identity by an own entry", "default/mine", other, plain},
		{"another node's identity in the request", "default/mine", mine, csrFor(t, x509.CertificateRequest{URIs: uri(t, other)})},
		{"an own and another identity in the request", "default/mine", mine, csrFor(t, x509.CertificateRequest{URIs: append(uri(t, mine), uri(t, other)...)})},
		{"a DNS name that the entry does not give", "default/mine", mine, csrFor(t, x509.CertificateRequest{DNSNames: []string{"bank.example"}})},
		{"the control plane's identity", "default/mine", td + "/legation/server", plain},
		{"another agent's identity", "default/mine", td + "/legation/agent/n2", plain},
		{"a path with ..", "default/mine", td + "/ns/default/sa/x/../other", plain},
		{"a path with an escape", "default/mine", td + "/ns/default/sa/%6fther", plain},
		{"a trust domain in capitals", "default/mine", strings.ToUpper(td) + "/ns/default/sa/other", plain},
		{"another trust domain", "default/mine", "spiffe://other.test/ns/default/sa/mine", plain},
		{"an entry by a path", "../other/default/other", other, plain},
		{"an entry with a NUL", "default/other\x00", other, plain},
		{"no identity", "default/mine", "", plain},
		{"no entry", "", other, plain},
	} {
		if err := a.sign(row.entry, row.id, row.csr); err == nil {
			t.Errorf("signed: %s", row.name)
		}
		if _, err := a.SignJWT(t.Context(), &nodev1.SignJWTRequest{TrustDomain: world.TrustDomain, Entry: row.entry, SpiffeId: row.id, Audience: []string{"x"}}); err == nil && row.id != mine {
			t.Errorf("a JWT-SVID was signed: %s", row.name)
		}
	}
	// One bad item among good ones.
	items := []*nodev1.X509Item{{Entry: "default/mine", SpiffeId: mine, Csr: plain}, {Entry: "default/other", SpiffeId: other, Csr: plain}, {Entry: "default/mine", SpiffeId: mine, Csr: plain}}
	r, err := a.SignX509(t.Context(), &nodev1.SignX509Request{TrustDomain: world.TrustDomain, Items: items})
	if err != nil || r.Results[0].Refusal != nil || r.Results[1].Refusal == nil || len(r.Results[1].Chain) != 0 || r.Results[2].Refusal != nil {
		t.Errorf("a batch with one bad item: %v %v", r, err)
	}
	// A CA is not to be had, whatever the request says.
	ca := csrFor(t, x509.CertificateRequest{URIs: uri(t, mine), ExtraExtensions: []pkix.Extension{
		{Id: asn1.ObjectIdentifier{2, 5, 29, 19}, Critical: true, Value: []byte{0x30, 3, 1, 1, 0xff}}, // basicConstraints: cA
		{Id: asn1.ObjectIdentifier{2, 5, 29, 15}, Critical: true, Value: []byte{3, 2, 1, 6}},          // keyUsage: keyCertSign, cRLSign
	}})
	asked, err := a.SignX509(t.Context(), &nodev1.SignX509Request{TrustDomain: world.TrustDomain, Items: []*nodev1.X509Item{{Entry: "default/mine", SpiffeId: mine, Csr: ca}}})
	if err != nil {
		t.Fatal(err)
	}
	if got := asked.Results[0]; got.Refusal == nil {
		leaf, err := x509.ParseCertificate(got.Chain[0])
		if err != nil || leaf.IsCA || len(leaf.URIs) != 1 || leaf.KeyUsage&x509.KeyUsageCertSign != 0 {
			t.Errorf("issued: %+v %v", leaf, err)
		}
	}
	if _, err := a.Renew(t.Context(), &nodev1.RenewRequest{TrustDomain: world.TrustDomain, Csr: csrFor(t, x509.CertificateRequest{URIs: uri(t, td+"/legation/agent/n2")})}); err == nil {
		t.Error("the thief became another agent")
	}
	if _, err := a.SignX509(t.Context(), &nodev1.SignX509Request{TrustDomain: world.TrustDomain, Items: []*nodev1.X509Item{{Entry: strings.Repeat("x", 5<<20)}}}); status.Code(err) != codes.ResourceExhausted {
		t.Errorf("five megabytes at once: %v", err)
	}
	// The other node's certificates are not this one's to supersede.
	serial := certificateOn(t, w, n2)
	a.report(&nodev1.ReportRequest{SupersededSerials: []string{serial}})
	w.Server.Says("is not a workload's certificate on node n1")
	if revoked(w, serial) {
		t.Error("another node's certificate was revoked")
	}
	if err := a.watch(&nodev1.Subject{Id: "s", Entry: "default/other", SpiffeId: other, Mode: nodev1.Mode_MODE_EXPLICIT}); err == nil {
		t.Error("the thief is told the configuration of another node's proxy")
	}

	// What it has ends with the ban, on the connection it has.
	w.JSON(nil, "node", "ban", "n1", "--reason", "stolen")
	if err := a.sign("default/mine", mine, plain); err == nil {
		t.Error("a banned node gets certificates")
	}
	if _, err := a.Renew(t.Context(), &nodev1.RenewRequest{TrustDomain: world.TrustDomain, Csr: plain}); err == nil {
		t.Error("a banned node renews")
	}
}

// report sends one report on a stream of its own.
func (a *thief) report(r *nodev1.ReportRequest) {
	a.t.Helper()
	stream, err := a.Report(a.t.Context())
	if err == nil {
		r.Hello = &nodev1.Hello{TrustDomain: world.TrustDomain, Protocol: 1}
		err = stream.Send(r)
	}
	if err == nil {
		_, err = stream.Recv()
	}
	if err != nil {
		a.t.Fatal(err)
	}
}

// watch asks for a proxy's configuration; the error is its refusal, too.
func (a *thief) watch(s *nodev1.Subject) error {
	a.t.Helper()
	ctx, cancel := context.WithTimeout(a.t.Context(), world.Patience)
	defer cancel()
	stream, err := a.Config(ctx)
	if err == nil {
		err = stream.Send(&nodev1.ConfigRequest{Message: &nodev1.ConfigRequest_Hello{Hello: &nodev1.Hello{TrustDomain: world.TrustDomain, Protocol: 1}}})
	}
	if err == nil {
		err = stream.Send(&nodev1.ConfigRequest{Message: &nodev1.ConfigRequest_Watch{Watch: s}})
	}
	for err == nil {
		var m *nodev1.ConfigResponse
		if m, err = stream.Recv(); err == nil {
			e := m.GetEnvelope()
			if f := e.GetRefusal(); f != nil {
				return errors.New(f.Message)
			}
			if len(e.GetResources()) > 0 {
				return nil
			}
		}
	}
	a.t.Fatalf("no answer: %v", err)
	return err
}

// certificateOn makes a workload of a node obtain a certificate, and returns
// its serial.
func certificateOn(t *testing.T, w *world.World, n *world.Node) string {
	t.Helper()
	svid, _ := me(t, w, n)
	return svid.Certificates[0].SerialNumber.Text(16)
}

func revoked(w *world.World, serial string) bool {
	var list []struct {
		Serial  string
		Revoked bool
	}
	w.JSON(&list, "cert", "list", "--serial", serial)
	return len(list) != 1 || list[0].Revoked
}

// An agent's certificate is for its control plane: no workload takes it.
func TestAStolenAgentKeyOpensNoWorkload(t *testing.T) {
	t.Parallel()
	p := newPair(t)
	agent := stolen(t, p.node)
	if _, err := dialTLS(p.inbound, &tls.Config{Certificates: []tls.Certificate{*agent}}); err == nil || errors.Is(err, io.EOF) {
		t.Errorf("bob's proxy takes the node's agent for a peer: %v", err)
	}
}
