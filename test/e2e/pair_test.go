package e2e

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"testing"
	"time"

	"github.com/legation-io/legation/test/e2e/world"
)

// pair is a client and a server program on one node, each with its own Envoy
// and explicit ports.
type pair struct {
	*world.World
	node         *world.Node
	alice, bob   *world.Session
	outbound     string // where alice's program would connect to reach bob
	inbound, app string // bob's mTLS port, and his program behind it
}

// newPair starts a world with both in sessions.
func newPair(t *testing.T, flags ...string) *pair {
	t.Helper()
	w := world.Start(t, flags...)
	p := &pair{World: w, node: w.Join("n1", logFlags(flags)...)}
	p.outbound, p.inbound, p.app = w.IP()+":9001", w.IP()+":15443", w.IP()+":8080"
	host, _, _ := net.SplitHostPort(p.inbound)
	p.Apply(world.Identity("alice", "n1", "unix:path:"+w.As("alice")) +
		world.Identity("bob", "n1", "unix:path:"+w.As("bob")) + world.Service("bob", host, 15443, "bob"))
	p.bob = p.node.Run("bob", nil, []string{"--inbound", p.inbound + "=" + p.app}, w.As("bob"), "serve", p.app, "bob")
	p.alice = p.node.Run("alice", nil, []string{"--outbound", "bob:8080=" + p.outbound}, w.As("alice"), "serve", w.IP()+":8080", "alice")
	p.flows()
	return p
}

// logFlags are the flags of a server that an agent understands too.
func logFlags(flags []string) []string {
	for i, f := range flags {
		if f == "--log-level" {
			return flags[i : i+2]
		}
	}
	return nil
}

// get is one request through alice's Envoy to bob, on a connection of its own.
func (p *pair) get() error { return get(p.outbound, "bob") }

// decode reads JSON.
func decode(text string, into any) error { return json.Unmarshal([]byte(text), into) }

func get(address, want string) error {
	client := &http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	response, err := client.Get("http://" + address + "/")
	if err != nil {
		return err
	}
	defer response.Body.Close()
	body, err := io.ReadAll(io.LimitReader(response.Body, 1<<20))
	if err == nil && string(body) != want {
		err = fmt.Errorf("%s answered %q, want %q", address, body, want)
	}
	return err
}

// flows waits until requests get through.
func (p *pair) flows() {
	p.Helper()
	world.Until(p, world.Patience, "alice reaches bob", p.get)
}

// stops waits until requests are refused.
func (p *pair) stops() {
	p.Helper()
	world.Until(p, world.Patience, "alice is refused", func() error {
		if p.get() == nil {
			return errors.New("she still gets answers")
		}
		return nil
	})
}

// held is one open connection through alice's Envoy to bob.
type held struct{ net.Conn }

// hold opens a connection and uses it once.
func hold(t testing.TB, address string) held {
	t.Helper()
	conn, err := net.DialTimeout("tcp", address, world.Patience)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	h := held{conn}
	if err := h.use(); err != nil {
		t.Fatalf("use a fresh connection to %s: %v", address, err)
	}
	return h
}

// use does one request on it.
func (h held) use() error {
	_ = h.SetDeadline(time.Now().Add(world.Patience))
	if _, err := io.WriteString(h, "GET / HTTP/1.1\r\nHost: x\r\n\r\n"); err != nil {
		return err
	}
	response, err := http.ReadResponse(bufio.NewReader(h), nil)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	_, err = io.Copy(io.Discard, response.Body)
	return err
}

// ended waits until the other end has closed it. How fast that was is in the
// command's own figures.
func (h held) ended(t testing.TB) {
	t.Helper()
	_ = h.SetDeadline(time.Now().Add(world.Patience))
	var timeout net.Error
	if _, err := io.Copy(io.Discard, h); errors.As(err, &timeout) && timeout.Timeout() {
		t.Fatalf("a connection that had to end lived for %s more", world.Patience)
	}
}

// connection is a line of "legation connections".
type connection struct{ Direction, SPIFFEID, PeerID, PeerSerial, TLSVersion, Cipher string }

func TestTwoProgramsThatKnowNoTLSTalkMutualTLS(t *testing.T) {
	t.Parallel()
	p := newPair(t)
	hold(t, p.outbound)
	world.Until(t, world.Patience, "both ends name each other", func() error {
		var list []connection
		if err := p.node.JSON(&list, "connections"); err != nil {
			return err
		}
		seen := map[string]bool{}
		for _, c := range list {
			seen[c.Direction+" "+c.PeerID+" "+c.TLSVersion] = true
		}
		if !seen["inbound "+world.ID("alice")+" TLSv1.3"] || !seen["outbound "+world.ID("bob")+" TLSv1.3"] {
			return fmt.Errorf("so far %v", seen)
		}
		return nil
	})
}
