package handshake

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"math/big"
	"strings"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/legation-io/legation/sdk/chaincheck"
)

// A verdict is what one side must say; the zero verdict succeeds.
type verdict struct {
	cause Cause
	whose string
	alert tls.AlertError
	says  []string // parts of the error's text
}

func (v verdict) check(t *testing.T, p *party, side Side) {
	t.Helper()
	if p.raw != nil {
		return
	}
	failures := 0
	for _, e := range p.events {
		if e.Err != nil {
			failures++
			if e.Err != p.err {
				t.Errorf("%s: the hook was told of another error: %v", side, e.Err)
			}
		}
		if e.Side != side || e.Remote == nil || e.Local == nil || e.Start.IsZero() || e.Duration <= 0 {
			t.Errorf("%s: event %+v", side, e)
		}
	}
	if v.cause == "" {
		if p.got != nil || failures > 0 {
			t.Errorf("%s: %v, %d failures told", side, p.got, failures)
		}
		return
	}
	if p.err == nil {
		t.Fatalf("%s: %v is no *Error, want %s", side, p.got, v.cause)
	}
	if failures != 1 {
		t.Errorf("%s: the hook was told of %d failures", side, failures)
	}
	if p.err.Cause != v.cause || p.err.Whose != v.whose || p.err.Alert != v.alert {
		t.Errorf("%s: cause %q whose %q alert %d, want %q %q %d\n%v\n%#v", side, p.err.Cause, p.err.Whose, p.err.Alert, v.cause, v.whose, v.alert, p.err, p.err.Err)
	}
	if p.err.Side != side || p.err.Remote == nil || p.err.Local == nil {
		t.Errorf("%s: where it was is missing: %#v", side, p.err)
	}
	checkText(t, p.err)
	text := p.err.Error()
	if !strings.HasSuffix(text, "docs/handshake-failures.md#"+string(v.cause)) {
		t.Errorf("%s: the text does not point to the guide: %s", side, text)
	}
	for _, part := range v.says {
		if !strings.Contains(text, part) {
			t.Errorf("%s: %q is missing in: %s", side, part, text)
		}
	}
}

// A row of the matrix: two parties, and what each must say.
type row struct {
	name           string
	server, client *party
	atServer       verdict
	atClient       verdict
}

// checkText: a server of net/http has only the text, and must say the same.
func checkText(t *testing.T, e *Error) {
	t.Helper()
	if r, ok := errors.AsType[*Refusal](e.Err); ok && r.Cause != "" {
		return // said by a type alone
	}
	var fromText Error
	fromText.classifyText(e.Err.Error())
	if e.Alert != 0 && fromText.Alert == 0 && fromText.Cause == Protocol {
		return // an alert in the clear, which only the bytes show
	}
	if fromText.Alert != e.Alert || e.Alert == 0 && (fromText.Cause != e.Cause || fromText.Whose != e.Whose) {
		t.Errorf("by types %s %q (alert %d), by text %s %q (alert %d): %v", e.Cause, e.Whose, e.Alert, fromText.Cause, fromText.Whose, fromText.Alert, e.Err)
	}
	var again Error
	if again.classifyText(e.Error()); again.Cause != e.Cause {
		t.Errorf("%s is read again from our own text as %s: %v", e.Cause, again.Cause, e)
	}
	for _, c := range e.Error() {
		if c < ' ' || c == 0x7f {
			t.Errorf("the text is no single printable line: %q", e.Error())
		}
	}
}

func runRows(t *testing.T, rows []row) {
	for _, r := range rows {
		t.Run(r.name, func(t *testing.T) {
			meet(t, r.server, r.client)
			r.atServer.check(t, r.server, Server)
			r.atClient.check(t, r.client, Client)
		})
	}
}

// world is what the rows are made of.
type world struct {
	root, foreign *authority
	server        tls.Certificate
	client        tls.Certificate
	trust         *chaincheck.Trust
	foreignTrust  *chaincheck.Trust
}

func newWorld(t testing.TB) *world {
	w := &world{root: newAuthority(t, "home root"), foreign: newAuthority(t, "foreign root")}
	w.server = w.root.issue(t, "spiffe://example.org/server", nil)
	w.client = w.root.issue(t, "spiffe://example.org/client", nil)
	w.trust = w.root.trust(t)
	w.foreignTrust = w.foreign.trust(t)
	return w
}

// serving asks for any certificate, as sdk/mtls does: verify judges it.
func serving(c tls.Certificate) *tls.Config {
	return &tls.Config{Certificates: []tls.Certificate{c}, ClientAuth: tls.RequireAnyClientCert, MinVersion: tls.VersionTLS12}
}

// calling leaves the server's certificate to verify.
func calling(certs ...tls.Certificate) *tls.Config {
	return &tls.Config{Certificates: certs, InsecureSkipVerify: true, ServerName: "localhost"}
}

func (w *world) judge(usage chaincheck.Usage) verifyFunc {
	return believing(w.trust, usage, chaincheck.Require, nil)
}

// expects is a server that judges clients, against a client that presents cert.
func (w *world) expects(cert tls.Certificate, verify verifyFunc) (server, client *party) {
	return &party{config: serving(w.server), verify: verify}, &party{config: calling(cert), verify: w.judge(chaincheck.Server)}
}

func TestASuccessfulHandshakeIsToldToo(t *testing.T) {
	w := newWorld(t)
	server, client := w.expects(w.client, w.judge(chaincheck.Client))
	meet(t, server, client)
	for _, p := range []*party{server, client} {
		if p.got != nil || len(p.events) != 1 || p.events[0].State == nil || p.events[0].SNI != "localhost" || p.events[0].Err != nil {
			t.Errorf("%v %+v", p.got, p.events)
		}
	}
}

func TestTheClientsCertificate(t *testing.T) {
	w := newWorld(t)
	type cert = *x509.Certificate
	bent := func(id string, change func(cert)) tls.Certificate { return w.root.issue(t, id, change) }
	id := "spiffe://example.org/client"
	revoked := bent(id, nil)
	weak, err := rsa.GenerateKey(rand.Reader, 1024)
	if err != nil {
		t.Fatal(err)
	}
	impostor := newAuthority(t, "home root")
	impostor.cert.SubjectKeyId = w.root.cert.SubjectKeyId
	denied, err := chaincheck.NewDenySet([]chaincheck.Denial{{ID: spiffeid.RequireFromString(id), Reason: "laptop lost", At: time.Now()}})
	if err != nil {
		t.Fatal(err)
	}
	denying := *w.trust
	denying.Denied = denied

	usage := chaincheck.Client
	refusedBy := func(trust *chaincheck.Trust) verifyFunc { return believing(trust, usage, chaincheck.Require, nil) }
	// Go's crypto/tls says bad_certificate (42) for whatever VerifyConnection
	// refuses, so the client knows no more than that, and its own dates.
	unsaid := verdict{Rejected, Own, 42, []string{`"bad certificate" (42)`, "spiffe://example.org/", "its log has the reason"}}
	var rows []row
	for _, c := range []struct {
		name     string
		present  tls.Certificate
		verify   verifyFunc
		atServer verdict
		atClient verdict
	}{
		{"unknown CA", w.foreign.issue(t, id, nil), w.judge(usage), verdict{UnknownCA, Peer, 0, []string{`"CN=home root"`, "1 roots of example.org"}}, unsaid},
		{"an issuer's name, another's key", impostor.issue(t, id, nil), w.judge(usage), verdict{BadSignature, Peer, 0, nil}, unsaid},
		{"expired", bent(id, func(c cert) { c.NotBefore, c.NotAfter = time.Now().Add(-time.Hour), time.Now().Add(-time.Minute) }), w.judge(usage),
			verdict{Expired, Peer, 0, []string{"it expired "}}, verdict{Expired, Own, 42, []string{"ours, ", "expired "}}},
		{"not yet valid", bent(id, func(c cert) { c.NotBefore = time.Now().Add(30 * time.Minute) }), w.judge(usage),
			verdict{NotYetValid, Peer, 0, []string{"valid from "}}, verdict{NotYetValid, Own, 42, []string{"valid only from "}}},
		{"wrong SAN", bent("", nil), w.judge(usage), verdict{WrongSAN, Peer, 0, []string{"no URI name"}}, verdict{Rejected, Own, 42, nil}},
		{"wrong trust domain", bent("spiffe://other.example/client", nil), w.judge(usage),
			verdict{WrongTrustDomain, Peer, 0, []string{"other.example"}}, verdict{Rejected, Own, 42, []string{"other.example"}}},
		{"revoked by list", revoked, refusedBy(w.root.trust(t, revoked.Leaf)), verdict{Revoked, Peer, 0, nil}, unsaid},
		{"revoked by deny set", w.client, refusedBy(&denying), verdict{Revoked, Peer, 0, []string{"laptop lost"}}, unsaid},
		{"revocation unknown", w.client, refusedBy(&chaincheck.Trust{Roots: w.trust.Roots}), verdict{RevocationUnknown, Peer, 0, nil}, unsaid},
		{"made for servers only", bent(id, func(c cert) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth} }), w.judge(usage),
			verdict{BadUsage, Peer, 0, nil}, unsaid},
		{"an extension nobody knows", bent(id, withCriticalExtension), w.judge(usage), verdict{Constraint, Peer, 0, nil}, unsaid},
		{"lives too long", bent(id, func(c cert) { c.NotAfter = time.Now().Add(2000 * time.Hour) }), w.judge(usage), verdict{Lifetime, Peer, 0, nil}, unsaid},
		{"a key that is too short", w.root.issueFor(t, weak, id, nil), w.judge(usage), verdict{WeakKey, Peer, 0, nil}, unsaid},
		{"not who may call", w.client, believing(w.trust, usage, chaincheck.Require, func(got spiffeid.ID) error {
			return errors.New("only spiffe://example.org/admin may call, not " + got.String())
		}), verdict{Unauthorized, Peer, 0, []string{"only spiffe://example.org/admin may call"}}, unsaid},
		{"a suite that is not allowed", w.client, func(context.Context, tls.ConnectionState) error {
			return &Refusal{Cause: CipherSuite, Err: errors.New("only AES-256-GCM is allowed")}
		}, verdict{CipherSuite, "", 0, []string{"AES-256-GCM"}}, unsaid},
		{"a resumed session", w.client, func(context.Context, tls.ConnectionState) error {
			return &Refusal{Cause: Resumption, Err: errors.New("the session was resumed")}
		}, verdict{Resumption, "", 0, nil}, unsaid},
		{"the verifier is asked a bad question", w.client, believing(w.trust, 0, chaincheck.Require, nil), verdict{BadParams, Peer, 0, nil}, unsaid},
		{"more certificates than anyone needs", tls.Certificate{Certificate: repeat(w.client.Certificate[0], 20), PrivateKey: w.client.PrivateKey, Leaf: w.client.Leaf},
			w.judge(usage), verdict{TooComplex, Peer, 0, []string{"20 certificates"}}, unsaid},
	} {
		server, client := w.expects(c.present, c.verify)
		rows = append(rows, row{c.name, server, client, c.atServer, c.atClient})
	}
	for _, old := range []struct {
		name     string
		max      uint16
		atClient verdict
	}{
		{"none, TLS 1.3", tls.VersionTLS13, verdict{NoCertificate, Own, 116, []string{"certificate required", "none was sent"}}},
		{"none, TLS 1.2", tls.VersionTLS12, verdict{NoCertificate, Own, 40, []string{"none was sent"}}},
	} {
		server, client := w.expects(w.client, w.judge(usage))
		client.config.Certificates = nil
		client.config.MaxVersion = old.max
		rows = append(rows, row{old.name, server, client, verdict{NoCertificate, Peer, 0, []string{"didn't provide a certificate"}}, old.atClient})
	}
	runRows(t, rows)
}

// What crypto/tls verifies itself, and the alerts that it sends then.
func TestTheClientsCertificateByCryptoTLS(t *testing.T) {
	w := newWorld(t)
	type cert = *x509.Certificate
	id := "spiffe://example.org/client"
	key8k := &fakeRSA{public: &rsa.PublicKey{N: new(big.Int).SetBit(big.NewInt(1), 8200, 1), E: 65537}}
	unknown := w.root.issueFor(t, ed25519.NewKeyFromSeed(make([]byte, 32)), id, nil)
	unknown.Certificate = [][]byte{asEd448(unknown.Certificate[0])}
	stolen := w.root.issue(t, id, nil)
	stolen.PrivateKey = mustKey(t)

	var rows []row
	for _, c := range []struct {
		name     string
		auth     tls.ClientAuthType
		present  tls.Certificate
		atServer verdict
		atClient verdict
	}{
		{"unknown CA", tls.RequireAndVerifyClientCert, w.foreign.issue(t, id, nil),
			verdict{UnknownCA, Peer, 0, []string{`tried "CN=home root"`}}, verdict{UnknownCA, Own, 48, []string{`issued by "CN=foreign root"`, `the peer accepts "CN=home root"`}}},
		{"expired", tls.RequireAndVerifyClientCert, w.root.issue(t, id, func(c cert) { c.NotAfter = time.Now().Add(-time.Minute) }),
			verdict{Expired, Peer, 0, nil}, verdict{Expired, Own, 45, []string{"ours, ", "expired "}}},
		{"not yet valid", tls.RequireAndVerifyClientCert, w.root.issue(t, id, func(c cert) { c.NotBefore = time.Now().Add(30 * time.Minute) }),
			verdict{NotYetValid, Peer, 0, nil}, verdict{NotYetValid, Own, 45, []string{"valid only from "}}},
		{"made for servers only", tls.RequireAndVerifyClientCert, w.root.issue(t, id, func(c cert) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth} }),
			verdict{BadUsage, Peer, 0, nil}, verdict{Rejected, Own, 42, nil}},
		{"an extension nobody knows", tls.RequireAndVerifyClientCert, w.root.issue(t, id, withCriticalExtension),
			verdict{Constraint, Peer, 0, nil}, verdict{Rejected, Own, 42, nil}},
		{"not a certificate", tls.RequireAnyClientCert, tls.Certificate{Certificate: [][]byte{[]byte("not a certificate")}, PrivateKey: w.client.PrivateKey},
			verdict{Malformed, Peer, 0, nil}, verdict{Protocol, "", 50, nil}},
		{"a key of 8200 bits", tls.RequireAnyClientCert, w.root.issueFor(t, key8k, id, nil),
			verdict{TooComplex, Peer, 0, nil}, verdict{Rejected, Own, 42, nil}},
		{"a kind of key nobody knows", tls.RequireAnyClientCert, unknown,
			verdict{WeakKey, Peer, 0, nil}, verdict{BadUsage, Own, 43, nil}},
		{"somebody else's certificate", tls.RequireAnyClientCert, stolen,
			verdict{BadProof, Peer, 0, nil}, verdict{BadProof, Own, 51, []string{"does the private key belong"}}},
	} {
		present := c.present
		server := &party{config: &tls.Config{Certificates: []tls.Certificate{w.server}, ClientAuth: c.auth, ClientCAs: w.root.pool()}}
		client := &party{config: calling(), verify: w.judge(chaincheck.Server)}
		// As it is, whatever the server says it accepts.
		client.config.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &present, nil }
		rows = append(rows, row{c.name, server, client, c.atServer, c.atClient})
	}
	runRows(t, rows)
}

func TestTheServersCertificate(t *testing.T) {
	w := newWorld(t)
	type cert = *x509.Certificate
	id := "spiffe://example.org/server"
	stolen := w.root.issue(t, id, nil)
	stolen.PrivateKey = mustKey(t)
	unsaid := verdict{Rejected, Own, 42, []string{"the peer refused", "ours is "}}
	strict := func() *tls.Config { return &tls.Config{RootCAs: w.root.pool(), ServerName: "localhost"} }
	var rows []row
	for _, c := range []struct {
		name     string
		present  tls.Certificate
		config   *tls.Config
		verify   verifyFunc
		atClient verdict
		atServer verdict
	}{
		{"unknown CA", w.foreign.issue(t, id, nil), calling(), w.judge(chaincheck.Server), verdict{UnknownCA, Peer, 0, []string{`"CN=home root"`}}, unsaid},
		{"revoked", w.server, calling(), believing(w.root.trust(t, w.server.Leaf), chaincheck.Server, chaincheck.Require, nil), verdict{Revoked, Peer, 0, nil}, unsaid},
		{"expired", w.root.issue(t, id, func(c cert) { c.NotAfter = time.Now().Add(-time.Minute) }), calling(), w.judge(chaincheck.Server),
			verdict{Expired, Peer, 0, nil}, verdict{Expired, Own, 42, []string{"ours, ", "expired "}}},
		{"the wrong service", w.server, calling(), believing(w.trust, chaincheck.Server, chaincheck.Require, func(got spiffeid.ID) error {
			return &Refusal{Cause: WrongName, Whose: Peer, Err: errors.New("wanted spiffe://example.org/db, got " + got.String())}
		}), verdict{Unauthorized, Peer, 0, []string{"wanted spiffe://example.org/db"}}, unsaid},
		{"crypto/tls: unknown CA", w.foreign.issue(t, id, nil), strict(), nil, verdict{UnknownCA, Peer, 0, []string{`tried "CN=home root"`}}, unsaid},
		{"crypto/tls: expired", w.root.issue(t, id, func(c cert) { c.NotAfter = time.Now().Add(-time.Minute) }), strict(), nil,
			verdict{Expired, Peer, 0, nil}, verdict{Expired, Own, 42, nil}},
		{"crypto/tls: not yet valid", w.root.issue(t, id, func(c cert) { c.NotBefore = time.Now().Add(time.Minute) }), strict(), nil,
			verdict{NotYetValid, Peer, 0, nil}, verdict{NotYetValid, Own, 42, nil}},
		{"crypto/tls: another host's", w.root.issue(t, id, func(c cert) { c.DNSNames = []string{"db.internal"} }), strict(), nil,
			verdict{WrongName, Peer, 0, []string{"db.internal", "localhost"}}, unsaid},
		{"crypto/tls: not a certificate", tls.Certificate{Certificate: [][]byte{[]byte("no")}, PrivateKey: w.server.PrivateKey, Leaf: w.server.Leaf}, strict(), nil,
			verdict{Malformed, Peer, 0, nil}, verdict{Protocol, "", 50, nil}},
		{"crypto/tls: somebody else's", stolen, strict(), nil, verdict{BadProof, Peer, 0, nil}, verdict{BadProof, Own, 51, nil}},
	} {
		server := &party{config: &tls.Config{Certificates: []tls.Certificate{c.present}}}
		client := &party{config: c.config, verify: c.verify}
		rows = append(rows, row{c.name, server, client, c.atServer, c.atClient})
	}
	runRows(t, rows)
}
