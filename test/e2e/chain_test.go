package e2e

import (
	"crypto/tls"
	"errors"
	"net"
	"strings"
	"testing"

	"github.com/legation-io/legation/test/e2e/world"
)

// TestA46TheCallingChainCrossesEnvoyAndTheSDK: shop, on the SDK, calls orders,
// behind its Envoy, which calls db, on the SDK. Each says who called, whatever
// shop's headers say.
func TestA46TheCallingChainCrossesEnvoyAndTheSDK(t *testing.T) {
	w := world.Start(t)
	n := w.Join("n1")
	host := w.IP()
	db, inbound, app, outbound := host+":15444", host+":15443", host+":8080", host+":9001"
	orders := withIdentityHeaders(world.Service("orders", host, 15443, "orders"), "orders")
	w.Apply(world.Identity("shop", "n1", "unix:path:"+w.As("shop")) + world.Identity("orders", "n1", "unix:path:"+w.As("orders")) +
		world.Identity("db", "n1", "unix:path:"+w.As("db")) + orders + world.Service("db", host, 15444, "db"))
	w.Run("db", []string{w.As("db"), "sdk-serve", db, n.Socket}).Says("serving " + world.ID("db"))
	s := n.Run("orders", nil, []string{"--inbound", inbound + "=" + app, "--outbound", "db:8080=" + outbound},
		w.As("orders"), "chain-serve", app, n.Socket, "http://"+outbound, world.ID("db"))
	s.Says("serving behind Envoy")

	got := ""
	world.Until(t, world.Patience, "shop reaches db through orders", func() error {
		r := w.Command(w.As("shop"), "sdk-get", "https://"+inbound, n.Socket, world.ID("orders"))
		if got = r.Stdout; r.Code != 0 {
			return errors.New(r.Stderr)
		}
		if strings.Count(got, "chain ") != 4 {
			return errors.New(got)
		}
		return nil
	})
	_, port, _ := net.SplitHostPort(inbound)
	say := func(host, proto, chain, peer string) string {
		return host + " " + proto + " chain " + chain + ` header ["` + peer + `"] ["` + peer + `"] forged []` + "\n"
	}
	shop, self := world.ID("shop"), world.ID("orders")
	at := host + ":" + port
	// Without a token, orders begins its own chain: nothing links shop to it.
	want := "plain: 200 OK\n" + say(at, "HTTP/1.1", shop, shop) + say(outbound, "HTTP/1.1", self, self) +
		"chain: 200 OK\n" + say(at, "HTTP/1.1", shop, shop) + say(outbound, "HTTP/1.1", shop+" > "+self, self)
	if got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
	// A process on the machine that is not the sidecar has no token to show.
	r := w.Command(w.As("shop"), "get", "http://"+app)
	if strings.Contains(r.Stdout, "chain spiffe") {
		t.Errorf("a request past the sidecar is answered %s", r.Stdout)
	}
}

// TestA35AConnectionWhoseRequestsAreReadEndsToo: a port whose program is told
// who calls is read as HTTP, and a revocation ends its connections all the
// same, those between two requests included.
func TestA35AConnectionWhoseRequestsAreReadEndsToo(t *testing.T) {
	t.Parallel()
	w := world.Start(t)
	n := w.Join("n1")
	host := w.IP()
	inbound, app := host+":15443", host+":8080"
	w.Apply(world.Identity("bob", "n1", "unix:path:"+w.As("bob")) + withIdentityHeaders(world.Service("bob", host, 15443, "bob"), "bob"))
	n.Run("bob", nil, []string{"--inbound", inbound + "=" + app}, w.As("bob"), "serve", app, "bob")
	svid, cert := me(t, w, n)
	var conn *tls.Conn
	world.Until(t, world.Patience, "bob's Envoy answers", func() (err error) {
		if conn != nil {
			conn.Close()
		}
		if conn, err = tls.DialWithDialer(dialer, "tcp", inbound, &tls.Config{Certificates: []tls.Certificate{*cert}, InsecureSkipVerify: true}); err != nil {
			return err
		}
		return held{conn}.use()
	})
	defer conn.Close()
	if err := (held{conn}).use(); err != nil {
		t.Fatalf("the second request on a connection: %v", err)
	}
	p := &pair{World: w}
	r := p.revoke(svid.ID.String(), "--reason", "lost")
	if r.ConnectionsClosed == 0 || r.ConnectionsFailed != 0 {
		t.Errorf("connections: %+v", r)
	}
	held{conn}.ended(t)
}

func withIdentityHeaders(service, name string) string {
	return strings.Replace(service, "{name: "+name+", namespace: default}",
		"{name: "+name+`, namespace: default, annotations: {legation.io/identity-headers: "true"}}`, 1)
}
