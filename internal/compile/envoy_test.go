package compile

import (
	"bufio"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	nodev1 "github.com/legation-io/legation/api/node/v1"
	"github.com/legation-io/legation/internal/envoytest"
	"github.com/legation-io/legation/internal/freeport"
)

// echo answers each line with itself until the test ends.
func echo(t *testing.T) string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		serveEcho(l)
	}()
	t.Cleanup(func() { _ = l.Close(); <-done })
	return l.Addr().String()
}

func freePort(t *testing.T) string {
	t.Helper()
	addr, err := freeport.Address()
	if err != nil {
		t.Fatal(err)
	}
	return addr
}

// ask sends a line and returns what comes back.
func ask(c net.Conn, err error) (string, error) {
	if err != nil {
		return "", err
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(time.Minute))
	if _, err := io.WriteString(c, "hello\n"); err != nil {
		return "", err
	}
	return bufio.NewReader(c).ReadString('\n')
}

func TestA25A36A42RealEnvoyEnforcesWhatIsCompiled(t *testing.T) {
	app, listen := echo(t), freePort(t)
	right, wrong, empty := freePort(t), freePort(t), freePort(t)
	_, port, _ := net.SplitHostPort(listen)
	declared := oneIdentity
	for name, account := range map[string]string{"right": "web", "wrong": "other"} {
		declared += fmt.Sprintf("---\napiVersion: v1\nkind: Service\nmetadata: {name: %s, namespace: shop}\nspec: {selector: {app: %s}, ports: [{port: 80, targetPort: %s}]}\n", name, name, port) +
			fmt.Sprintf("---\napiVersion: networking.istio.io/v1\nkind: WorkloadEntry\nmetadata: {name: %s, namespace: shop}\nspec: {address: 127.0.0.1, labels: {app: %s}, serviceAccount: %s}\n", name, name, account)
	}
	all, err := Proxy(apply(t, open(t), declared), &nodev1.Subject{Id: "s", Entry: "shop/web", Mode: nodev1.Mode_MODE_EXPLICIT,
		Inbound: []*nodev1.Inbound{{Listen: listen, App: app}},
		Outbound: []*nodev1.Outbound{{Service: "right", Port: 80, Listen: right}, {Service: "wrong", Port: 80, Listen: wrong},
			{Service: "empty", Port: 80, Listen: empty}}}, testOptions)
	if err != nil {
		t.Fatal(err)
	}
	ca := newAuthority(t)
	const self = "spiffe://example.org/ns/shop/sa/web"
	e := envoytest.Start(t, string(static(t, all, ca.secrets(t, self))), envoytest.Options{Args: []string{"--service-node", "t", "--service-cluster", "t"}})

	dial := func(addr string) (net.Conn, error) { return net.DialTimeout("tcp", addr, time.Minute) }
	for name, test := range map[string]struct {
		addr string
		ok   bool
	}{
		"the identity expected":           {right, true},
		"a valid but wrong identity":      {wrong, false},
		"a service that is not there":     {empty, false},
		"plaintext to the port with mTLS": {listen, false},
	} {
		if answer, err := ask(dial(test.addr)); (answer == "hello\n") != test.ok {
			t.Errorf("%s: %q %v\n%s", name, answer, err, e.Log())
		}
	}

	roots := x509.NewCertPool()
	roots.AddCert(ca.cert)
	foreign := newAuthority(t)
	secure := func(c *tls.Config) (net.Conn, error) { return tls.Dial("tcp", listen, c) }
	client := func(a *authority, id string) *tls.Config {
		cert, key := a.issue(t, id)
		pair, err := tls.X509KeyPair(cert, key)
		if err != nil {
			t.Fatal(err)
		}
		return &tls.Config{Certificates: []tls.Certificate{pair}, RootCAs: roots, InsecureSkipVerify: true,
			ClientSessionCache: tls.NewLRUClientSessionCache(8), ServerName: "x"}
	}
	old := client(ca, self)
	old.MaxVersion = tls.VersionTLS12
	for name, test := range map[string]struct {
		config *tls.Config
		ok     bool
	}{
		"another workload of the domain": {client(ca, "spiffe://example.org/ns/any/sa/one"), true},
		"no certificate":                 {&tls.Config{InsecureSkipVerify: true}, false},
		"a certificate of a foreign CA":  {client(foreign, self), false},
		"another trust domain, same CA":  {client(ca, "spiffe://other.org/ns/any/sa/one"), false},
		"a domain that begins like ours": {client(ca, "spiffe://example.organic/a"), false},
		"TLS 1.2":                        {old, false},
		"a URI that is not a SPIFFE ID":  {client(ca, "https://example.org/"), false},
	} {
		for range 2 { // the second time with whatever session the first left
			answer, err := ask(secure(test.config))
			if (answer == "hello\n") != test.ok {
				t.Errorf("%s: %q %v", name, answer, err)
			}
		}
	}
	again := client(ca, self)
	for n := range 3 {
		c, err := tls.Dial("tcp", listen, again)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := ask(c, nil); err != nil {
			t.Fatal(err)
		}
		if state := c.ConnectionState(); state.DidResume || state.CurveID != tls.X25519MLKEM768 || state.Version != tls.VersionTLS13 {
			t.Errorf("connection %d: resumed %v, curve %s, version %x", n, state.DidResume, state.CurveID, state.Version)
		}
	}
	if n, _ := e.Stat("listener.inbound.ssl.session_reused"); n != 0 {
		t.Errorf("%d sessions were resumed", n)
	}
	if n, ok := e.Stat("listener.inbound.ssl.connection_error"); !ok || n == 0 {
		t.Errorf("refusals are not counted: %s", grep(e.Admin("/stats"), "inbound"))
	}
}

func grep(text, part string) string {
	var b strings.Builder
	for line := range strings.Lines(text) {
		if strings.Contains(line, part) {
			b.WriteString(line)
		}
	}
	return b.String()
}
