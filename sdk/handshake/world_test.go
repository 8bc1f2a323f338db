package handshake

import (
	"cmp"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"io"
	"math/big"
	"net"
	"net/url"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/legation-io/legation/sdk/chaincheck"
)

// patience bounds every wait of the tests.
const patience = time.Minute

var home = spiffeid.RequireTrustDomainFromString("example.org")

// An authority is a root that signs directly.
type authority struct {
	cert *x509.Certificate
	key  crypto.Signer
}

var lastSerial atomic.Int64

func newAuthority(t testing.TB, name string) *authority {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1000 + lastSerial.Add(1)), Subject: pkix.Name{CommonName: name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
		BasicConstraintsValid: true, IsCA: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return &authority{cert, key}
}

func (a *authority) pool() *x509.CertPool {
	pool := x509.NewCertPool()
	pool.AddCert(a.cert)
	return pool
}

func (a *authority) trust(t testing.TB, revoked ...*x509.Certificate) *chaincheck.Trust {
	t.Helper()
	template := &x509.RevocationList{Number: big.NewInt(1), ThisUpdate: time.Now().Add(-time.Minute), NextUpdate: time.Now().Add(time.Hour)}
	for _, c := range revoked {
		template.RevokedCertificateEntries = append(template.RevokedCertificateEntries,
			x509.RevocationListEntry{SerialNumber: c.SerialNumber, RevocationTime: time.Now().Add(-time.Minute), ReasonCode: 1})
	}
	der, err := x509.CreateRevocationList(rand.Reader, template, a.cert, a.key)
	if err != nil {
		t.Fatal(err)
	}
	set, err := chaincheck.NewCRLSet([][]byte{der})
	if err != nil {
		t.Fatal(err)
	}
	return &chaincheck.Trust{Roots: chaincheck.Roots{home: {a.cert}}, CRLs: set}
}

func signed(subject string, sign func(*x509.Certificate)) func(*x509.Certificate) {
	return func(c *x509.Certificate) {
		c.URIs = nil
		if u, err := url.Parse(subject); err == nil && subject != "" {
			c.URIs = []*url.URL{u}
		}
		if sign != nil {
			sign(c)
		}
	}
}

// issue makes a workload's certificate for both sides of a handshake.
func (a *authority) issue(t testing.TB, id string, change func(*x509.Certificate)) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return a.issueFor(t, key, id, change)
}

func (a *authority) issueFor(t testing.TB, key crypto.Signer, id string, change func(*x509.Certificate)) tls.Certificate {
	t.Helper()
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1000 + lastSerial.Add(1)), Subject: pkix.Name{CommonName: "workload"},
		NotBefore: time.Now().Add(-10 * time.Minute), NotAfter: time.Now().Add(time.Hour),
		BasicConstraintsValid: true, KeyUsage: x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		DNSNames:    []string{"localhost"},
	}
	signed(id, change)(template)
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, key.Public(), a.key)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}
}

// A verifyFunc is Config's third argument.
type verifyFunc func(context.Context, tls.ConnectionState) error

// believing is a verify function as sdk/mtls has it: the verifier of this SDK,
// then who may talk to us.
func believing(trust *chaincheck.Trust, usage chaincheck.Usage, policy chaincheck.Policy, authorise func(spiffeid.ID) error) verifyFunc {
	v := chaincheck.NewVerifier(chaincheck.VerifierConfig{Usage: usage, Revocation: policy, MaxLifetime: 72 * time.Hour})
	return func(ctx context.Context, cs tls.ConnectionState) error {
		r, err := v.Verify(ctx, trust, cs.PeerCertificates, cs.OCSPResponse)
		if err != nil {
			return &Refusal{Roots: trust.Roots, Err: err}
		}
		if authorise != nil {
			if err := authorise(r.ID); err != nil {
				return &Refusal{Cause: Unauthorized, Whose: Peer, Err: err}
			}
		}
		return nil
	}
}

// A party is one end of a handshake.
type party struct {
	config *tls.Config
	verify verifyFunc
	// patience is the deadline; zero is far away.
	patience time.Duration
	ctx      context.Context // instead
	// raw, in place of a handshake, does what it likes with the connection.
	raw func(net.Conn)

	events []*Event
	err    *Error
	got    error // the error as it was returned
}

func (p *party) hook(_ context.Context, e *Event) { p.events = append(p.events, e) }

// run does the party's half and lingers so that alerts arrive.
func (p *party) run(t testing.TB, side Side, conn net.Conn) {
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(patience))
	if p.raw != nil {
		p.raw(conn)
		return
	}
	ctx := p.ctx
	if ctx == nil {
		c, cancel := context.WithTimeout(t.Context(), cmp.Or(p.patience, patience))
		defer cancel()
		ctx = c
	}
	a := Begin(side, conn, []Hook{p.hook})
	config := a.Config(ctx, p.config, p.verify)
	var c *tls.Conn
	if side == Server {
		c = tls.Server(a.Conn(), config)
	} else {
		c = tls.Client(a.Conn(), config)
	}
	err := a.Run(ctx, c)
	if err == nil && side == Client {
		// What a client of TLS 1.3 learns late.
		if _, rerr := c.Read(make([]byte, 1)); rerr != nil {
			if late := a.Late(ctx, c, rerr); errors.As(late, new(*Error)) {
				err = late
			} else if !errors.Is(rerr, io.EOF) {
				t.Errorf("the client's first read: %v", rerr)
			}
		}
	} else if err == nil {
		c.Write([]byte("x"))
	}
	p.got = err
	errors.As(err, &p.err)
	if err != nil {
		Linger(conn, time.Second)
	} else {
		c.Close()
	}
}

// meet lets two parties shake hands over TCP.
func meet(t testing.TB, server, client *party) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() {
		conn, err := l.Accept()
		if err != nil {
			t.Error(err)
			return
		}
		server.run(t, Server, conn)
	})
	conn, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	client.run(t, Client, conn)
}
