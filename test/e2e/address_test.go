package e2e

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"os"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/legation-io/legation/test/e2e/world"
	"golang.org/x/sys/unix"
)

// namespace is a network namespace of the test's own, with interface d0.
type namespace struct {
	*world.World
	name string
}

func newNamespace(t *testing.T, w *world.World) *namespace {
	t.Helper()
	ns := &namespace{World: w, name: fmt.Sprintf("lge2e-%d-%d", os.Getpid(), time.Now().UnixNano()%1e6)}
	ns.ip("netns", "add", ns.name)
	t.Cleanup(func() { w.Command("ip", "netns", "del", ns.name) })
	ns.ip("-n", ns.name, "link", "set", "lo", "up")
	ns.ip("-n", ns.name, "link", "add", "d0", "type", "veth", "peer", "name", "d1")
	ns.ip("-n", ns.name, "link", "set", "d0", "up")
	ns.ip("-n", ns.name, "link", "set", "d1", "up")
	return ns
}

func (ns *namespace) ip(args ...string) {
	ns.Helper()
	if r := ns.Command(append([]string{"ip"}, args...)...); r.Code != 0 {
		ns.Fatalf("ip %s: %s", strings.Join(args, " "), r.Stderr)
	}
}

func (ns *namespace) enter(program ...string) []string {
	return append([]string{"ip", "netns", "exec", ns.name}, program...)
}

// presented is the certificate that a server in the namespace shows.
func (ns *namespace) presented(address string) (*x509.Certificate, error) {
	// This thread comes back: processes of the world die with the thread that
	// started them.
	runtime.LockOSThread()
	home, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		return nil, err
	}
	defer home.Close()
	there, err := os.Open("/run/netns/" + ns.name)
	if err != nil {
		return nil, err
	}
	defer there.Close()
	if err := unix.Setns(int(there.Fd()), unix.CLONE_NEWNET); err != nil {
		return nil, err
	}
	defer func() {
		if err := unix.Setns(int(home.Fd()), unix.CLONE_NEWNET); err != nil {
			ns.Fatalf("leave the namespace: %v", err)
		}
		runtime.UnlockOSThread()
	}()
	conn, err := net.DialTimeout("tcp", address, world.Patience)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(world.Patience))
	client := tls.Client(conn, &tls.Config{InsecureSkipVerify: true, MinVersion: tls.VersionTLS13}) // it looks, and sends nothing
	if err := client.Handshake(); err != nil {
		return nil, err
	}
	return client.ConnectionState().PeerCertificates[0], nil
}

func TestAChangedAddressIsInANewCertificateAndTheOldOneIsRevokedAfterwards(t *testing.T) {
	t.Parallel()
	w := world.Start(t)
	node := w.Join("n1")
	ns := newNamespace(t, w)
	ns.ip("-n", ns.name, "addr", "add", "10.213.7.2/24", "dev", "d0")
	w.Apply(strings.Replace(world.Identity("bob", "n1", "unix:path:"+w.As("bob")), "spec: {", "spec: {includeOwnIP: true, ", 1) +
		world.Service("bob", "10.213.7.2", 15443, "bob"))
	node.Run("bob", ns.enter(), []string{"--inbound", "10.213.7.2:15443=127.0.0.1:8080"}, w.As("bob"), "serve", "127.0.0.1:8080", "bob")

	shows := func(want ...string) string {
		t.Helper()
		var serial string
		world.Until(t, world.Patience, "the certificate names "+strings.Join(want, " and "), func() error {
			leaf, err := ns.presented("10.213.7.2:15443")
			if err != nil {
				return err
			}
			var ips []string
			for _, ip := range leaf.IPAddresses {
				ips = append(ips, ip.String())
			}
			slices.Sort(ips)
			if !slices.Equal(ips, want) {
				return fmt.Errorf("it names %v", ips)
			}
			serial = leaf.SerialNumber.Text(16)
			return nil
		})
		return serial
	}
	type certificate struct {
		Serial, RevocationReason string
		Revoked                  bool
	}
	state := func(serial string) (c certificate, err error) {
		err = w.TryJSON(&c, "cert", "show", serial)
		return c, err
	}
	old := shows("10.213.7.2")
	ns.ip("-n", ns.name, "addr", "add", "10.213.7.3/24", "dev", "d0")
	fresh := shows("10.213.7.2", "10.213.7.3")
	world.Until(t, world.Patience, "the old certificate is revoked", func() error {
		c, err := state(old)
		if err == nil && !c.Revoked {
			err = errors.New("not yet")
		}
		return err
	})
	if c, err := state(fresh); err != nil || c.Revoked {
		t.Errorf("the new certificate: %+v %v", c, err)
	}
	if got := shows("10.213.7.2", "10.213.7.3"); got != fresh {
		t.Errorf("signed again without a change: %s after %s", got, fresh)
	}
	// The address goes away again.
	ns.ip("-n", ns.name, "addr", "del", "10.213.7.3/24", "dev", "d0")
	shows("10.213.7.2")
	world.Until(t, world.Patience, "the second certificate is revoked too", func() error {
		c, err := state(fresh)
		if err == nil && !c.Revoked {
			err = errors.New("not yet")
		}
		return err
	})
}
