package e2e

import (
	"context"
	"crypto/tls"
	"os"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"github.com/spiffe/go-spiffe/v2/workloadapi"

	"github.com/legation-io/legation/test/e2e/world"
)

// me declares an identity for this very test process and fetches it.
func me(t *testing.T, w *world.World, n *world.Node) (*x509svid.SVID, *tls.Certificate) {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	w.Apply(world.Identity("me", n.Name, "unix:path:"+self))
	ctx, cancel := context.WithTimeout(context.Background(), world.Patience)
	defer cancel()
	svid, err := workloadapi.FetchX509SVID(ctx, workloadapi.WithAddr("unix://"+n.Socket))
	if err != nil {
		t.Fatal(err)
	}
	cert := &tls.Certificate{PrivateKey: svid.PrivateKey, Leaf: svid.Certificates[0]}
	for _, c := range svid.Certificates {
		cert.Certificate = append(cert.Certificate, c.Raw)
	}
	return svid, cert
}

// dialTLS does a handshake as an attacker who does not care whom it talks to,
// and reads once, so that a refusal after it is seen.
func dialTLS(address string, config *tls.Config) (tls.ConnectionState, error) {
	config.InsecureSkipVerify = true
	conn, err := tls.DialWithDialer(dialer, "tcp", address, config)
	if err != nil {
		return tls.ConnectionState{}, err
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(300 * time.Millisecond))
	_, err = conn.Read(make([]byte, 1))
	if e, ok := err.(interface{ Timeout() bool }); ok && e.Timeout() {
		err = nil // open, and nothing said
	}
	return conn.ConnectionState(), err
}
