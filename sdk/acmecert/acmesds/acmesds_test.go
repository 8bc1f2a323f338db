package acmesds

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"

	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	secretv3 "github.com/envoyproxy/go-control-plane/envoy/service/secret/v3"
	"go.uber.org/goleak"
	rpcstatus "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// kept is a Source that is told what it has.
type kept struct {
	mu      sync.Mutex
	all     map[string]*tls.Certificate
	changed chan struct{}
}

func (k *kept) Certificates() (map[string]*tls.Certificate, <-chan struct{}) {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.all, k.changed
}

func (k *kept) set(name string, c *tls.Certificate) {
	k.mu.Lock()
	defer k.mu.Unlock()
	next := map[string]*tls.Certificate{name: c}
	for n, c := range k.all {
		if n != name {
			next[n] = c
		}
	}
	k.all = next
	close(k.changed)
	k.changed = make(chan struct{})
}

func newKept() *kept { return &kept{changed: make(chan struct{})} }

func certificate(t testing.TB, name string, serial int64) *tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(serial), DNSNames: []string{name}, NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	return &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

// serve runs a Server until the test ends.
func serve(t testing.TB, source Source, change func(*Config)) (path string) {
	t.Helper()
	dir, err := os.MkdirTemp("/tmp", "sds")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	c := Config{Source: source, Socket: filepath.Join(dir, "sds.sock"), Logger: slog.New(slog.DiscardHandler)}
	if change != nil {
		change(&c)
	}
	s, err := New(c)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
		if _, err := os.Lstat(c.Socket); err == nil {
			t.Error("the socket is left")
		}
	})
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(2 * time.Millisecond) {
		if _, err := os.Stat(c.Socket); err == nil {
			return c.Socket
		}
		if time.Now().After(deadline) {
			t.Fatal("no socket")
		}
	}
}

func client(t testing.TB, path string) secretv3.SecretDiscoveryServiceClient {
	t.Helper()
	conn, err := grpc.NewClient("unix:"+path, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return secretv3.NewSecretDiscoveryServiceClient(conn)
}

func secretIn(t testing.TB, r *discoveryv3.DiscoveryResponse, index int) *tlsv3.Secret {
	t.Helper()
	s := &tlsv3.Secret{}
	if err := r.Resources[index].UnmarshalTo(s); err != nil {
		t.Fatal(err)
	}
	return s
}

func TestAGatewayGetsWhatItNamesAndEveryChangeOfIt(t *testing.T) {
	k := newKept()
	stream, err := client(t, serve(t, k, nil)).StreamSecrets(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	ask := func(version, nonce string, refusal *rpcstatus.Status, names ...string) {
		t.Helper()
		if err := stream.Send(&discoveryv3.DiscoveryRequest{TypeUrl: typeSecret, ResourceNames: names, VersionInfo: version, ResponseNonce: nonce, ErrorDetail: refusal}); err != nil {
			t.Fatal(err)
		}
	}
	next := func() *discoveryv3.DiscoveryResponse {
		t.Helper()
		r, err := stream.Recv()
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	ask("", "", nil, "a.test") // not there yet: waited for
	k.set("b.test", certificate(t, "b.test", 1))
	first := certificate(t, "a.test", 2)
	k.set("a.test", first)
	r := next()
	secret := secretIn(t, r, 0)
	if len(r.Resources) != 1 || secret.Name != "a.test" {
		t.Fatal(r)
	}
	pair, err := tls.X509KeyPair(secret.GetTlsCertificate().CertificateChain.GetInlineBytes(), secret.GetTlsCertificate().PrivateKey.GetInlineBytes())
	if err != nil || string(pair.Certificate[0]) != string(first.Certificate[0]) {
		t.Fatal(err)
	}
	ask(r.VersionInfo, r.Nonce, nil, "a.test")
	k.set("b.test", certificate(t, "b.test", 3)) // nobody's business here
	second := *first
	second.OCSPStaple = []byte("staple")
	k.set("a.test", &second)
	again := next()
	if again.VersionInfo == r.VersionInfo || string(secretIn(t, again, 0).GetTlsCertificate().OcspStaple.GetInlineBytes()) != "staple" {
		t.Error("the OCSP response is not handed over")
	}
	ask(r.VersionInfo, again.Nonce, &rpcstatus.Status{Message: "no"}, "a.test") // refused: not sent again
	ask(again.VersionInfo, r.Nonce, nil, "b.test")                              // overtaken: ignored
	k.set("a.test", certificate(t, "a.test", 4))
	if last := next(); len(last.Resources) != 1 || secretIn(t, last, 0).Name != "a.test" || last.VersionInfo == again.VersionInfo {
		t.Error(last)
	}
}

func TestAnIncrementalStreamGetsOnlyWhatChanged(t *testing.T) {
	k := newKept()
	k.set("a.test", certificate(t, "a.test", 1))
	c := client(t, serve(t, k, nil))
	stream, err := c.DeltaSecrets(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	send := func(r *discoveryv3.DeltaDiscoveryRequest) {
		t.Helper()
		if err := stream.Send(r); err != nil {
			t.Fatal(err)
		}
	}
	names := func() (string, *discoveryv3.DeltaDiscoveryResponse) {
		t.Helper()
		r, err := stream.Recv()
		if err != nil {
			t.Fatal(err)
		}
		var all string
		for _, resource := range r.Resources {
			all += resource.Name + " "
		}
		return all, r
	}
	send(&discoveryv3.DeltaDiscoveryRequest{TypeUrl: typeSecret, ResourceNamesSubscribe: []string{"a.test", "b.test"}})
	got, r := names()
	if got != "a.test " {
		t.Errorf("first %q", got)
	}
	send(&discoveryv3.DeltaDiscoveryRequest{TypeUrl: typeSecret, ResponseNonce: r.Nonce})
	k.set("b.test", certificate(t, "b.test", 2))
	if got, _ := names(); got != "b.test " {
		t.Errorf("then %q", got)
	}
	send(&discoveryv3.DeltaDiscoveryRequest{TypeUrl: typeSecret, ResourceNamesUnsubscribe: []string{"b.test"}, ResourceNamesSubscribe: []string{"c.test"}})
	k.set("c.test", certificate(t, "c.test", 3))
	if got, _ := names(); got != "c.test " {
		t.Errorf("for a further name %q", got)
	}
	k.set("b.test", certificate(t, "b.test", 4)) // asked for no more
	k.set("a.test", certificate(t, "a.test", 5))
	got, r = names()
	if got != "a.test " {
		t.Errorf("after one was given up %q", got)
	}
	held := r.Resources[0].Version
	stream.CloseSend()
	// A new stream that has it already is not sent it again.
	if stream, err = c.DeltaSecrets(t.Context()); err != nil {
		t.Fatal(err)
	}
	send(&discoveryv3.DeltaDiscoveryRequest{TypeUrl: typeSecret, ResourceNamesSubscribe: []string{"a.test", "c.test"}, InitialResourceVersions: map[string]string{"a.test": held}})
	if got, _ := names(); got != "c.test " {
		t.Errorf("again %q", got)
	}
}

func TestAnIncrementalStreamOfAllNamesMayAskForOneAgain(t *testing.T) {
	d := &delta{sent: map[string]string{}}
	d.server = &Server{}
	var names []string
	for i := range maxNames {
		names = append(names, fmt.Sprint("n", i))
	}
	for _, row := range []struct {
		names []string
		fine  bool
	}{{names, true}, {names[:1], true}, {[]string{"more"}, false}} {
		if err := d.receive(&discoveryv3.DeltaDiscoveryRequest{ResourceNamesSubscribe: row.names}); (err == nil) != row.fine {
			t.Error(len(row.names), err)
		}
	}
}

func TestTheSocketIsTheOwnersAlone(t *testing.T) {
	path := serve(t, newKept(), nil)
	info, err := os.Stat(path)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", info.Mode(), err)
	}
	left, err := os.ReadDir(filepath.Dir(path))
	if err != nil || len(left) != 1 {
		t.Errorf("%v, %v", left, err)
	}
}

func TestAPathIsRefused(t *testing.T) {
	path := serve(t, newKept(), nil)
	if _, err := listen(path); err == nil {
		t.Error("another process's socket was taken")
	}
	busy := filepath.Join(t.TempDir(), "s")
	syscall.ForkLock.RLock()
	socket, err := syscall.Socket(syscall.AF_UNIX, syscall.SOCK_STREAM, 0)
	if err == nil {
		syscall.CloseOnExec(socket)
	}
	syscall.ForkLock.RUnlock()
	if err == nil {
		defer syscall.Close(socket)
		err = errors.Join(syscall.Bind(socket, &syscall.SockaddrUnix{Name: busy}), syscall.Listen(socket, 0))
	}
	if err != nil {
		t.Fatal(err)
	}
	for range 2 { // fills its queue: nobody accepts
		if c, err := net.DialTimeout("unix", busy, 10*time.Millisecond); err == nil {
			defer c.Close()
		}
	}
	if _, err := listen(busy); err == nil {
		t.Error("a socket whose process is busy was taken")
	}
	file := filepath.Join(t.TempDir(), "f")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := listen(file); err == nil {
		t.Error("a file was replaced")
	}
}

func TestASocketThatACrashLeftIsReplaced(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	l, err := listen(path)
	if err != nil {
		t.Fatal(err)
	}
	l.Close() // and not removed
	again, err := listen(path)
	if err != nil {
		t.Fatal(err)
	}
	again.Close()
}

func TestRequestsAreRefused(t *testing.T) {
	k := newKept()
	c := client(t, serve(t, k, func(c *Config) { c.Streams = 1 }))
	for name, row := range map[string]struct {
		request *discoveryv3.DiscoveryRequest
		code    codes.Code
	}{
		"for another type":            {&discoveryv3.DiscoveryRequest{TypeUrl: "type.googleapis.com/envoy.config.cluster.v3.Cluster"}, codes.InvalidArgument},
		"for too many names":          {&discoveryv3.DiscoveryRequest{ResourceNames: make([]string, maxNames+1)}, codes.InvalidArgument},
		"for a name that has nothing": {&discoveryv3.DiscoveryRequest{ResourceNames: []string{"none.test"}}, codes.Unavailable},
		"beyond a size":               {&discoveryv3.DiscoveryRequest{ResourceNames: []string{string(make([]byte, maxRequest))}}, codes.ResourceExhausted},
	} {
		if _, err := c.FetchSecrets(t.Context(), row.request); status.Code(err) != row.code {
			t.Errorf("%s: %v", name, err)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	k.set("a.test", certificate(t, "a.test", 1))
	first, err := c.StreamSecrets(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if err := first.Send(&discoveryv3.DiscoveryRequest{ResourceNames: []string{"A.test"}}); err != nil {
		t.Fatal(err)
	}
	if _, err := first.Recv(); err != nil {
		t.Fatal(err)
	}
	second, err := c.StreamSecrets(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := second.Recv(); status.Code(err) != codes.ResourceExhausted {
		t.Error(err)
	}
}
