package e2e

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"syscall"
	"testing"

	"github.com/legation-io/legation/test/e2e/world"
)

// captured is two programs in captured network namespaces, and a third host
// that is none of ours and serves in plaintext.
type captured struct {
	*world.World
	node              *world.Node
	onA, onB, outside *world.Host
	alice, bob        *world.Session
}

func newCaptured(t *testing.T) *captured {
	t.Helper()
	w := world.Start(t)
	c := &captured{World: w, node: w.Join("n1")}
	hosts := w.Hosts("a", "b", "outside")
	c.onA, c.onB, c.outside = hosts[0], hosts[1], hosts[2]
	c.Apply(world.Identity("alice", "n1", "unix:path:"+w.As("alice")) + world.Identity("bob", "n1", "unix:path:"+w.As("bob")) +
		world.Service("bob", c.onB.IPv4, 8080, "bob") + world.Service("bob6", c.onB.IPv6, 8080, "bob"))
	c.bob = c.node.Run("bob", c.onB.In(), []string{"--capture", "--inbound", "8080"}, w.As("bob"), "serve", "127.0.0.1:8080", "bob")
	c.alice = c.node.Run("alice", c.onA.In(), []string{"--capture", "--inbound", "8080"}, w.As("alice"), "serve", "127.0.0.1:8080", "alice")
	w.Run("outsider", c.outside.In(w.As("outsider"), "serve", "[::]:8080", "outsider"))
	world.Until(t, world.Patience, "the outsider serves", func() error { return c.try(c.outside, "http://"+c.outside.IPv4+":8080/", "outsider") })
	return c
}

// try is one request by a program on a host; nil when the answer is want.
func (c *captured) try(from *world.Host, url, want string, prefix ...string) error {
	r := c.Command(from.In(append(prefix, c.As("probe"), "get", url)...)...)
	if r.Code != 0 || r.Stdout != want {
		return fmt.Errorf("%s: exit code %d, answer %q: %s", url, r.Code, r.Stdout, strings.TrimSpace(r.Stderr))
	}
	return nil
}

func (c *captured) urls(h *world.Host) map[string]string {
	return map[string]string{"IPv4": "http://" + h.IPv4 + ":8080/", "IPv6": "http://[" + h.IPv6 + "]:8080/"}
}

func TestA48CaptureIPv4AndIPv6(t *testing.T) {
	t.Parallel()
	c := newCaptured(t)
	for family, url := range c.urls(c.onB) {
		world.Until(t, world.Patience, family+": a program that knows nothing of it reaches the other", func() error { return c.try(c.onA, url, "bob") })
		if c.try(c.outside, url, "bob") == nil {
			t.Errorf("%s: plaintext from outside is served", family)
		}
	}
	for family, url := range c.urls(c.outside) {
		if c.try(c.onA, url, "outsider") == nil {
			t.Errorf("%s: a destination that nothing names is reached", family)
		}
		// Nobody is exempt for the user id of the proxy.
		if c.try(c.onA, url, "outsider", "setpriv", "--reuid", "1337", "--regid", "1337", "--clear-groups") == nil {
			t.Errorf("%s: a program with the proxy's user id slips past", family)
		}
	}
	for family, address := range map[string]string{"IPv4": c.outside.IPv4 + ":9999", "IPv6": "[" + c.outside.IPv6 + "]:9999"} {
		if r := c.Command(c.onA.In(c.As("probe"), "udp", address)...); r.Code == 0 || !strings.Contains(r.Stderr, "operation not permitted") {
			t.Errorf("%s: UDP leaves: exit code %d, %s", family, r.Code, r.Stderr)
		}
	}
	// Both refusals are told and counted.
	var failures []struct{ SPIFFEID, Direction, Cause, Destination, Remote string }
	world.Until(t, world.Patience, "the reasons are told", func() error {
		if err := c.node.JSON(&failures, "connections", "--failures"); err != nil {
			return err
		}
		seen := map[string]bool{}
		for _, f := range failures {
			seen[f.Direction+" "+f.Cause] = true
		}
		for _, want := range []string{"inbound plaintext", "outbound unnamed"} {
			if !seen[want] {
				return fmt.Errorf("no %q among %v", want, seen)
			}
		}
		return nil
	})
	page := body(t, "http://"+c.node.Metrics+"/metrics")
	for _, cause := range []string{`cause="plaintext"`, `cause="unnamed"`} {
		if !strings.Contains(page, cause) {
			t.Errorf("no metric counts %s", cause)
		}
	}
}

func body(t testing.TB, url string) string {
	t.Helper()
	response, err := http.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	raw, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	return string(raw)
}

// closed checks that nothing leaves and nothing gets in.
func (c *captured) closed(t *testing.T, when string) {
	t.Helper()
	for family, url := range c.urls(c.outside) {
		if c.try(c.onA, url, "outsider") == nil {
			t.Errorf("%s, %s: plaintext leaves", when, family)
		}
	}
	for family, url := range c.urls(c.onB) {
		if c.try(c.outside, url, "bob") == nil {
			t.Errorf("%s, %s: plaintext gets in", when, family)
		}
	}
}

func TestA48NothingSlipsPastWhileAProxyIsDown(t *testing.T) {
	t.Parallel()
	c := newCaptured(t)
	url := c.urls(c.onB)["IPv4"]
	world.Until(t, world.Patience, "requests flow", func() error { return c.try(c.onA, url, "bob") })
	for range 3 {
		for _, s := range []*world.Session{c.alice, c.bob} {
			world.Until(t, world.Patience, "an Envoy is killed", func() error {
				if pid := s.Envoy(); pid != 0 {
					return syscall.Kill(pid, syscall.SIGKILL)
				}
				return errors.New("no Envoy")
			})
		}
		c.closed(t, "with both proxies killed")
	}
	world.Until(t, world.Patience, "requests flow again", func() error { return c.try(c.onA, url, "bob") })
	// The session's parents are killed: rules stay, the programs are gone.
	c.alice.Kill()
	c.bob.Kill()
	c.closed(t, "with both sessions killed")
	if c.try(c.onA, url, "bob") == nil {
		t.Error("a request of a captured host gets through without its session")
	}
	// Started again, they serve again.
	c.bob.Start()
	c.alice.Start()
	world.Until(t, world.Patience, "requests flow once more", func() error { return c.try(c.onA, url, "bob") })
	// An orderly end takes the rules away.
	c.alice.Stop()
	if err := c.try(c.onA, c.urls(c.outside)["IPv4"], "outsider"); err != nil {
		t.Errorf("after an orderly end the host is still captured: %v", err)
	}
}
