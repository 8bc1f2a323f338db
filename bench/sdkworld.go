package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/url"
	"sync"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"golang.org/x/crypto/ocsp"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/health/grpc_health_v1"

	"github.com/legation-io/legation/sdk/chaincheck"
	"github.com/legation-io/legation/sdk/grpccreds"
	sdkidentity "github.com/legation-io/legation/sdk/identity"
	"github.com/legation-io/legation/sdk/mtls"
)

// sdkWorld is a trust domain with a root, an issuing CA and their lists.
type sdkWorld struct {
	domain        spiffeid.TrustDomain
	root, issuing *x509.Certificate
	rootKey, key  *ecdsa.PrivateKey
	pool          *x509.CertPool
	trust         *chaincheck.Trust
	serial        int64
}

const sdkHost = "model.bench.test"

func newSDKWorld(denied int) (*sdkWorld, error) {
	w := &sdkWorld{domain: spiffeid.RequireTrustDomainFromString("bench.test"), pool: x509.NewCertPool()}
	var err error
	if w.root, w.rootKey, err = w.ca("root", nil, nil); err != nil {
		return nil, err
	}
	if w.issuing, w.key, err = w.ca("issuing", w.root, w.rootKey); err != nil {
		return nil, err
	}
	w.pool.AddCert(w.root)
	var lists [][]byte
	for _, c := range []struct {
		cert *x509.Certificate
		key  *ecdsa.PrivateKey
	}{{w.root, w.rootKey}, {w.issuing, w.key}} {
		der, err := x509.CreateRevocationList(rand.Reader, &x509.RevocationList{Number: big.NewInt(1), ThisUpdate: time.Now().Add(-time.Minute), NextUpdate: time.Now().Add(time.Hour)}, c.cert, c.key)
		if err != nil {
			return nil, err
		}
		lists = append(lists, der)
	}
	crls, err := chaincheck.NewCRLSet(lists)
	if err != nil {
		return nil, err
	}
	// Half of the denials name identities, half serials.
	denials := make([]chaincheck.Denial, 0, denied)
	for n := range denied / 2 {
		denials = append(denials,
			chaincheck.Denial{ID: spiffeid.RequireFromPathf(w.domain, "/ns/bench/sa/denied-%d", n), Reason: "bench", At: time.Now()},
			chaincheck.Denial{Serial: fmt.Sprintf("ffff%x", n), Reason: "bench", At: time.Now()})
	}
	set, err := chaincheck.NewDenySet(denials)
	if err != nil {
		return nil, err
	}
	w.trust = &chaincheck.Trust{Roots: chaincheck.Roots{w.domain: {w.root}}, CRLs: crls, Denied: set}
	return w, nil
}

func (w *sdkWorld) ca(name string, parent *x509.Certificate, parentKey *ecdsa.PrivateKey) (*x509.Certificate, *ecdsa.PrivateKey, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	w.serial++
	t := &x509.Certificate{SerialNumber: big.NewInt(w.serial), Subject: pkix.Name{CommonName: name}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign}
	if parent == nil {
		parent, parentKey = t, key
	}
	der, err := x509.CreateCertificate(rand.Reader, t, parent, key.Public(), parentKey)
	if err != nil {
		return nil, nil, err
	}
	cert, err := x509.ParseCertificate(der)
	return cert, key, err
}

// leaf is an SVID that also has a DNS name, for plain crypto/tls to check.
func (w *sdkWorld) leaf(path string, responder bool) (*tls.Certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	w.serial++
	t := &x509.Certificate{SerialNumber: big.NewInt(w.serial), Subject: pkix.Name{CommonName: "bench"}, NotBefore: time.Now().Add(-time.Minute), NotAfter: time.Now().Add(23 * time.Hour),
		URIs: []*url.URL{{Scheme: "spiffe", Host: w.domain.Name(), Path: path}}, DNSNames: []string{sdkHost}, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth}}
	if responder {
		t.OCSPServer = []string{"http://ocsp.bench.test/"}
	}
	der, err := x509.CreateCertificate(rand.Reader, t, w.issuing, key.Public(), w.key)
	if err != nil {
		return nil, err
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, err
	}
	return &tls.Certificate{Certificate: [][]byte{der, w.issuing.Raw}, PrivateKey: key, Leaf: cert}, nil
}

// Fetch makes the world a responder (chaincheck.Fetcher).
func (w *sdkWorld) Fetch(_ context.Context, r chaincheck.OCSPRequest) ([]byte, error) {
	question, err := ocsp.ParseRequest(r.DER)
	if err != nil {
		return nil, err
	}
	return ocsp.CreateResponse(w.issuing, w.issuing, ocsp.Response{Status: ocsp.Good, SerialNumber: question.SerialNumber,
		ThisUpdate: time.Now().Add(-time.Minute), NextUpdate: time.Now().Add(time.Hour)}, w.key)
}

const (
	sdkServerPath = "/ns/bench/sa/model"
	sdkClientPath = "/ns/bench/sa/web"
)

// sides are the SDK's configurations and crypto/tls's for the same
// certificates.
type sdkSides struct {
	server             mtls.ServerConfig
	client             mtls.ClientConfig
	peerServer, peerIn *tls.Config
}

func (w *sdkWorld) sides(trust *chaincheck.Trust, responder bool) (*sdkSides, error) {
	s, err := w.leaf(sdkServerPath, responder)
	if err != nil {
		return nil, err
	}
	c, err := w.leaf(sdkClientPath, responder)
	if err != nil {
		return nil, err
	}
	source := func(cert *tls.Certificate, path string) sdkidentity.Source {
		return sdkidentity.NewMemory(&sdkidentity.Snapshot{ID: spiffeid.RequireFromPath(w.domain, path), Certificate: cert, Trust: trust})
	}
	return &sdkSides{
		server:     mtls.ServerConfig{Source: source(s, sdkServerPath), Authorize: mtls.AuthorizePath(w.domain, "/ns/*/sa/web")},
		client:     mtls.ClientConfig{Source: source(c, sdkClientPath), Authorize: mtls.AuthorizeID(spiffeid.RequireFromPath(w.domain, sdkServerPath)), ServerName: sdkHost},
		peerServer: &tls.Config{Certificates: []tls.Certificate{*s}, ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: w.pool, MinVersion: tls.VersionTLS13, SessionTicketsDisabled: true},
		peerIn:     &tls.Config{Certificates: []tls.Certificate{*c}, RootCAs: w.pool, ServerName: sdkHost, MinVersion: tls.VersionTLS13},
	}, nil
}

// closers end in the opposite order.
type closers []func()

func (c *closers) add(f func()) { *c = append(*c, f) }

func (c closers) close() {
	for n := len(c) - 1; n >= 0; n-- {
		c[n]()
	}
}

func (w *sdkWorld) httpRequests(name, proto string) (*twin, error) {
	s, err := w.sides(w.trust, false)
	if err != nil {
		return nil, err
	}
	t := &twin{name: name, n: 1000, budget: 1.02}
	var ends closers
	t.close = func() { ends.close() }
	s.server.NextProtos, s.client.NextProtos = []string{proto}, []string{proto}
	s.peerServer.NextProtos, s.peerIn.NextProtos = []string{proto}, []string{proto}

	// The SDK's handler asks who calls; the other does not.
	l, err := mtls.Listen("tcp", "127.0.0.1:0", s.server)
	if err != nil {
		return nil, err
	}
	ours := &http.Server{Handler: http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		if _, ok := sdkidentity.PeerFromContext(r.Context()); !ok {
			rw.WriteHeader(http.StatusForbidden)
		}
		io.WriteString(rw, "ok")
	})}
	go l.Serve(ours)
	ends.add(func() { ours.Close() })
	pl, err := tls.Listen("tcp", "127.0.0.1:0", s.peerServer)
	if err != nil {
		return nil, err
	}
	peer := &http.Server{Handler: http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) { io.WriteString(rw, "ok") })}
	go peer.Serve(pl)
	ends.add(func() { peer.Close() })

	d, err := mtls.NewDialer(s.client)
	if err != nil {
		return nil, err
	}
	ends.add(func() { d.Close() })
	ourClient := &http.Client{Transport: d.Transport()}
	same := d.Transport() // the same pool, and timers
	peerClient := &http.Client{Transport: &http.Transport{TLSClientConfig: s.peerIn, ForceAttemptHTTP2: proto == "h2",
		MaxIdleConns: same.MaxIdleConns, IdleConnTimeout: same.IdleConnTimeout, ExpectContinueTimeout: same.ExpectContinueTimeout}}
	ends.add(ourClient.CloseIdleConnections)
	ends.add(peerClient.CloseIdleConnections)
	t.ours = requests(ourClient, "https://"+l.Addr().String()+"/")
	t.peer = requests(peerClient, "https://"+pl.Addr().String()+"/")
	return t, nil
}

func requests(c *http.Client, target string) func(int) error {
	return func(n int) error {
		for range n {
			resp, err := c.Get(target)
			if err != nil {
				return err
			}
			_, err = io.Copy(io.Discard, resp.Body)
			resp.Body.Close()
			if err != nil || resp.StatusCode != http.StatusOK {
				return fmt.Errorf("answered %s, %v", resp.Status, err)
			}
		}
		return nil
	}
}

// health answers, and the SDK's asks who calls.
type health struct {
	grpc_health_v1.UnimplementedHealthServer
	asks bool
}

func (h *health) Check(ctx context.Context, _ *grpc_health_v1.HealthCheckRequest) (*grpc_health_v1.HealthCheckResponse, error) {
	if h.asks {
		if _, ok := sdkidentity.PeerFromContext(ctx); !ok {
			return nil, errors.New("no peer")
		}
	}
	return &grpc_health_v1.HealthCheckResponse{Status: grpc_health_v1.HealthCheckResponse_SERVING}, nil
}

func (w *sdkWorld) grpcCalls() (*twin, error) {
	s, err := w.sides(w.trust, false)
	if err != nil {
		return nil, err
	}
	t := &twin{name: "gRPC call", n: 1000, budget: 1.02}
	var ends closers
	t.close = func() { ends.close() }
	start := func(asks bool, options ...grpc.ServerOption) (string, error) {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return "", err
		}
		server := grpc.NewServer(options...)
		grpc_health_v1.RegisterHealthServer(server, &health{asks: asks})
		go server.Serve(l)
		ends.add(server.Stop)
		return l.Addr().String(), nil
	}
	calls := func(address string, creds credentials.TransportCredentials) (func(int) error, error) {
		conn, err := grpc.NewClient("passthrough:///"+address, grpc.WithTransportCredentials(creds))
		if err != nil {
			return nil, err
		}
		ends.add(func() { conn.Close() })
		client := grpc_health_v1.NewHealthClient(conn)
		return func(n int) error {
			for range n {
				if _, err := client.Check(context.Background(), &grpc_health_v1.HealthCheckRequest{}); err != nil {
					return err
				}
			}
			return nil
		}, nil
	}
	serverCreds, err := grpccreds.NewServer(s.server)
	if err != nil {
		return nil, err
	}
	creds, err := grpccreds.NewClient(s.client)
	if err != nil {
		return nil, err
	}
	a, err := start(true, grpc.Creds(serverCreds))
	if err != nil {
		return nil, err
	}
	b, err := start(false, grpc.Creds(credentials.NewTLS(s.peerServer)))
	if err != nil {
		return nil, err
	}
	if t.ours, err = calls(a, creds); err != nil {
		return nil, err
	}
	t.peer, err = calls(b, credentials.NewTLS(s.peerIn))
	return t, err
}

// sdkPeers is who shakes hands.
type sdkPeers int

const (
	sdkKnown     sdkPeers = iota // the same two again and again
	sdkOCSP                      // the same, with responders' answers
	sdkStrangers                 // never remembered
)

func (w *sdkWorld) handshakes(name string, who sdkPeers) (*twin, error) {
	s, err := w.sides(w.trust, who == sdkOCSP)
	if err != nil {
		return nil, err
	}
	t := &twin{name: name, n: 75, budget: 1.05}
	var ends closers
	t.close = func() { ends.close() }
	if who == sdkOCSP {
		o := chaincheck.NewOCSP(chaincheck.OCSPConfig{Fetcher: w})
		s.server.OCSP, s.client.OCSP = o, o
		ends.add(func() { o.Close() })
	}
	forget := func() {}
	if who == sdkStrangers {
		t.budget = 0
		// Under another Trust nothing that is remembered counts.
		forget = func() {
			for _, source := range []sdkidentity.Source{s.server.Source, s.client.Source} {
				now, _, _ := source.Current()
				next, trust := *now, *now.Trust
				next.Trust = &trust
				source.(*sdkidentity.Memory).Set(&next)
			}
		}
	}
	l, err := mtls.Listen("tcp", "127.0.0.1:0", s.server)
	if err != nil {
		return nil, err
	}
	pl, err := tls.Listen("tcp", "127.0.0.1:0", s.peerServer)
	if err != nil {
		return nil, err
	}
	for _, l := range []net.Listener{l, pl} {
		var done sync.WaitGroup
		done.Go(func() { greet(l, &done) })
		ends.add(func() { l.Close(); done.Wait() })
	}
	d, err := mtls.NewDialer(s.client)
	if err != nil {
		return nil, err
	}
	ends.add(func() { d.Close() })
	t.ours = meet(func(ctx context.Context) (net.Conn, error) {
		forget()
		return d.DialContext(ctx, "tcp", l.Addr().String())
	})
	plain := &tls.Dialer{Config: s.peerIn}
	t.peer = meet(func(ctx context.Context) (net.Conn, error) { return plain.DialContext(ctx, "tcp", pl.Addr().String()) })
	return t, nil
}

// greet answers each connection with one byte.
func greet(l net.Listener, done *sync.WaitGroup) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		done.Go(func() {
			defer c.Close()
			c.SetDeadline(time.Now().Add(10 * time.Second))
			c.Write([]byte{1})
		})
	}
}

// meet dials and reads that byte.
func meet(dial func(context.Context) (net.Conn, error)) func(int) error {
	return func(n int) error {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		for range n {
			c, err := dial(ctx)
			if err != nil {
				return err
			}
			_, err = io.ReadFull(c, make([]byte, 1))
			c.Close()
			if err != nil {
				return err
			}
		}
		return nil
	}
}
