package capture

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func mustInstall(t *testing.T, p Params) *Rules {
	t.Helper()
	r, err := Install(p)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := r.Remove(); err != nil {
			t.Error(err)
		}
	})
	return r
}

func refused(t *testing.T, what string, err error) {
	t.Helper()
	if !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("%s: %v, want connection refused", what, err)
	}
}

func counter(t *testing.T, r *Rules, name string) uint64 {
	t.Helper()
	c, err := r.Counters()
	if err != nil {
		t.Fatal(err)
	}
	if _, ok := c[name]; !ok {
		t.Fatalf("no counter %s in %v", name, c)
	}
	return c[name].Packets
}

// A48: UDP, IPv6, raw sockets, the proxy's uid, before the proxy starts and
// while it is down: nothing slips past.
func TestA48NothingSlipsPast(t *testing.T) {
	w := newWorld(t)
	for _, a := range []string{there4, there6} {
		greet(t, listen(t, w.there, "tcp", net.JoinHostPort(a, "9000")), "world")
	}
	greet(t, listen(t, w.here, "tcp", "[::]:8080"), "program")
	greet(t, listen(t, w.here, "tcp", "[::]:2222"), "excluded")
	out4, out6 := net.JoinHostPort(there4, "9000"), net.JoinHostPort(there6, "9000")
	in4, in6 := net.JoinHostPort(here4, "8080"), net.JoinHostPort(here6, "8080")

	for _, a := range []string{out4, out6} { // the rig itself works
		if line, err := dial(t, w.here, a, nil); err != nil || !strings.HasPrefix(line, "world") {
			t.Fatalf("without capture %s: %q, %v", a, line, err)
		}
	}
	r := mustInstall(t, Params{NetNS: path(w.here), ExcludeInboundPorts: []uint16{2222}})

	closed := func(t *testing.T) {
		for _, a := range []string{out4, out6} {
			_, err := dial(t, w.here, a, nil)
			refused(t, "outbound to "+a, err)
		}
		for _, a := range []string{in4, in6} {
			_, err := dial(t, w.there, a, nil)
			refused(t, "inbound to "+a, err)
		}
		if got := asNobody(t, w.here, "dial", out4); !strings.Contains(got, "refused") {
			t.Errorf("as another user: %s", got)
		}
	}
	t.Run("before the proxy starts", closed)

	outbound4, outbound6 := listen(t, w.here, "tcp", "127.0.0.1:15001"), listen(t, w.here, "tcp", "[::1]:15001")
	inbound := listen(t, w.here, "tcp", "[::]:15006")
	greet(t, outbound4, "outbound")
	greet(t, outbound6, "outbound")
	greet(t, inbound, "inbound")

	t.Run("with the proxy every connection comes to it, with its destination", func(t *testing.T) {
		for _, a := range []string{out4, out6} {
			if line, err := dial(t, w.here, a, nil); line != "outbound "+a+" <nil>" {
				t.Errorf("outbound to %s: %q, %v", a, line, err)
			}
			if got := asNobody(t, w.here, "dial", a); got != "outbound "+a+" <nil>" {
				t.Errorf("as the proxy's user, without the mark, to %s: %q", a, got)
			}
		}
		for _, a := range []string{in4, in6} {
			if line, err := dial(t, w.there, a, nil); line != "inbound "+a+" <nil>" {
				t.Errorf("inbound to %s: %q, %v", a, line, err)
			}
		}
		if n := counter(t, r, OutboundCaptured); n < 4 {
			t.Errorf("%d outbound connections counted", n)
		}
		if n := counter(t, r, InboundCaptured); n < 2 {
			t.Errorf("%d inbound connections counted", n)
		}
	})
	t.Run("only the mark passes, and an unprivileged program cannot set it", func(t *testing.T) {
		for _, a := range []string{out4, out6} {
			if line, err := dial(t, w.here, a, marked); !strings.HasPrefix(line, "world") {
				t.Errorf("marked, to %s: %q, %v", a, line, err)
			}
		}
		if got := asNobody(t, w.here, "dial marked", out4); !strings.Contains(got, "operation not permitted") {
			t.Errorf("an unprivileged program set the mark: %s", got)
		}
	})
	t.Run("the proxy's own ports are closed from outside", func(t *testing.T) {
		before := counter(t, r, DirectRefused)
		for _, ip := range []string{here4, here6} {
			for _, port := range []string{"15001", "15006"} {
				_, err := dial(t, w.there, net.JoinHostPort(ip, port), nil)
				refused(t, ip+" "+port, err)
			}
		}
		if n := counter(t, r, DirectRefused) - before; n < 4 {
			t.Errorf("%d counted, want 4", n)
		}
	})
	t.Run("loopback and excluded ports are untouched", func(t *testing.T) {
		for _, a := range []string{"127.0.0.1:8080", "[::1]:8080", in4, in6} {
			if line, err := dial(t, w.here, a, nil); !strings.HasPrefix(line, "program") {
				t.Errorf("%s from inside: %q, %v", a, line, err)
			}
		}
		for _, ip := range []string{here4, here6} {
			if line, err := dial(t, w.there, net.JoinHostPort(ip, "2222"), nil); !strings.HasPrefix(line, "excluded") {
				t.Errorf("excluded port of %s: %q, %v", ip, line, err)
			}
		}
	})
	t.Run("of UDP only DNS leaves, and nothing comes in", func(t *testing.T) { udp(t, w, r) })
	t.Run("other protocols do not leave", func(t *testing.T) {
		before := counter(t, r, OutboundElseRefused)
		for _, f := range []struct {
			family int
			to     unix.Sockaddr
		}{
			{unix.AF_INET, &unix.SockaddrInet4{Addr: [4]byte(net.ParseIP(there4).To4())}},
			{unix.AF_INET6, &unix.SockaddrInet6{Addr: [16]byte(net.ParseIP(there6))}},
		} {
			err := in(t, w.here, func() error {
				fd, err := unix.Socket(f.family, unix.SOCK_RAW, unix.IPPROTO_SCTP)
				if err != nil {
					return err
				}
				defer unix.Close(fd)
				return unix.Sendto(fd, []byte("0123456789abcdef"), 0, f.to)
			})
			if err == nil {
				t.Errorf("family %d: a raw packet left", f.family)
			}
		}
		if n := counter(t, r, OutboundElseRefused) - before; n != 2 {
			t.Errorf("%d counted, want 2", n)
		}
	})
	t.Run("ICMP passes", func(t *testing.T) { ping(t, w) })

	outbound4.Close()
	outbound6.Close()
	inbound.Close()
	t.Run("after the proxy crashed", closed)
}

func udp(t *testing.T, w *world, r *Rules) {
	for _, row := range []struct {
		name, from, to, host string
		arrives              bool
		counter              string
	}{
		{"DNS over IPv4", w.here, w.there, there4 + ":53", true, ""},
		{"DNS over IPv6", w.here, w.there, "[" + there6 + "]:53", true, ""},
		{"out to another port, IPv4", w.here, w.there, there4 + ":9999", false, OutboundUDPRefused},
		{"out to another port, IPv6", w.here, w.there, "[" + there6 + "]:9999", false, OutboundUDPRefused},
		{"in, IPv4", w.there, w.here, here4 + ":9999", false, InboundUDPRefused},
		{"in, IPv6", w.there, w.here, "[" + here6 + "]:9999", false, InboundUDPRefused},
	} {
		t.Run(row.name, func(t *testing.T) {
			var before uint64
			if row.counter != "" {
				before = counter(t, r, row.counter)
			}
			var server net.PacketConn
			if err := in(t, row.to, func() (err error) { server, err = net.ListenPacket("udp", row.host); return err }); err != nil {
				t.Fatal(err)
			}
			defer server.Close()
			var client net.Conn
			if err := in(t, row.from, func() (err error) { client, err = net.Dial("udp", row.host); return err }); err != nil {
				t.Fatal(err)
			}
			defer client.Close()
			_, sendErr := client.Write([]byte("question"))
			wait := 200 * time.Millisecond // for what must not come
			if row.arrives {
				wait = 3 * time.Second
			}
			if err := server.SetReadDeadline(time.Now().Add(wait)); err != nil {
				t.Fatal(err)
			}
			b := make([]byte, 100)
			_, peer, err := server.ReadFrom(b)
			if (err == nil) != row.arrives {
				t.Fatalf("arrived: %v (send: %v)", err, sendErr)
			}
			if row.arrives {
				if _, err := server.WriteTo([]byte("answer"), peer); err != nil {
					t.Fatal(err)
				}
				if err := client.SetReadDeadline(time.Now().Add(3 * time.Second)); err != nil {
					t.Fatal(err)
				}
				if _, err := client.Read(b); err != nil {
					t.Errorf("the answer: %v", err)
				}
			}
			if row.counter != "" && counter(t, r, row.counter) == before {
				t.Error("not counted")
			}
		})
	}
}

func ping(t *testing.T, w *world) {
	err := in(t, w.here, func() error {
		c, err := net.Dial("ip4:icmp", there4)
		if err != nil {
			return err
		}
		defer c.Close()
		if err := c.SetDeadline(time.Now().Add(3 * time.Second)); err != nil {
			return err
		}
		if _, err := c.Write([]byte{8, 0, 0xf7, 0xff, 0, 0, 0, 0}); err != nil {
			return err
		}
		_, err = c.Read(make([]byte, 100))
		return err
	})
	if err != nil {
		t.Errorf("echo: %v", err)
	}
}

// A program of the namespace may bind the Envoy's port while that is down;
// it does not get the connections.
func TestNobodyElseCanBeTheProxy(t *testing.T) {
	w := newWorld(t)
	r := mustInstall(t, Params{NetNS: path(w.here), MarkedListeners: true})
	control := func(mark bool) net.ListenConfig {
		if mark {
			return net.ListenConfig{Control: marked}
		}
		return net.ListenConfig{}
	}
	for _, row := range []struct {
		name   string
		marked bool
	}{{"an unmarked listener", false}, {"the marked one", true}} {
		t.Run(row.name, func(t *testing.T) {
			for _, a := range []string{"127.0.0.1:15001", "[::1]:15001", "[::]:15006"} {
				var l net.Listener
				config := control(row.marked)
				if err := in(t, w.here, func() (err error) { l, err = config.Listen(t.Context(), "tcp", a); return err }); err != nil {
					t.Fatal(err)
				}
				greet(t, l, "got it")
			}
			for _, c := range []struct{ ns, to string }{
				{w.here, net.JoinHostPort(there4, "9000")}, {w.here, net.JoinHostPort(there6, "9000")},
				{w.there, net.JoinHostPort(here4, "8080")}, {w.there, net.JoinHostPort(here6, "8080")},
			} {
				line, err := dial(t, c.ns, c.to, nil)
				if row.marked {
					if line != "got it "+c.to+" <nil>" {
						t.Errorf("to %s: %q, %v", c.to, line, err)
					}
					continue
				}
				refused(t, c.to, err)
			}
		})
	}
	if n := counter(t, r, UnmarkedRefused); n < 4 {
		t.Errorf("%d counted, want 4", n)
	}
}

func TestAnOpenConnectionSurvivesReinstalling(t *testing.T) {
	w := newWorld(t)
	first := mustInstall(t, Params{NetNS: path(w.here)})
	l := listen(t, w.here, "tcp", "127.0.0.1:15001")
	var client net.Conn
	if err := in(t, w.here, func() (err error) {
		client, err = net.DialTimeout("tcp", net.JoinHostPort(there4, "9000"), 3*time.Second)
		return err
	}); err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	server, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	mustInstall(t, Params{NetNS: path(w.here)}) // our own table is replaced
	if _, err := client.Write([]byte("on")); err != nil {
		t.Fatal(err)
	}
	if line, err := firstLine(server); line != "on" {
		t.Errorf("after reinstalling: %q, %v", line, err)
	}
	if _, err := first.Counters(); err != nil {
		t.Error(err)
	}
}

// A connection that is older than the rules does not go on beside them.
func TestAConnectionOlderThanTheRulesEnds(t *testing.T) {
	t.Run("the kernel did not track it", func(t *testing.T) { older(t, newWorld(t)) })
	t.Run("the kernel knows it as established", func(t *testing.T) {
		w := newWorld(t)
		run(t, "ip", "netns", "exec", w.here, "nft", "add table inet other; add chain inet other c { type filter hook output priority 0; }; add rule inet other c ct state established counter")
		older(t, w)
	})
}

func older(t *testing.T, w *world) {
	l := listen(t, w.there, "tcp", net.JoinHostPort(there4, "9000"))
	var client net.Conn
	if err := in(t, w.here, func() (err error) {
		client, err = net.DialTimeout("tcp", net.JoinHostPort(there4, "9000"), 3*time.Second)
		return err
	}); err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	server, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	if _, err := client.Write([]byte("before")); err != nil {
		t.Fatal(err)
	}
	if line, err := firstLine(server); line != "before" {
		t.Fatalf("without capture: %q, %v", line, err)
	}
	mustInstall(t, Params{NetNS: path(w.here)})
	_, _ = client.Write([]byte("still here")) // may be reset at once
	if err := server.SetReadDeadline(time.Now().Add(300 * time.Millisecond)); err != nil {
		t.Fatal(err)
	}
	if n, err := server.Read(make([]byte, 10)); n > 0 {
		t.Errorf("%d bytes slipped past (%v)", n, err)
	}
}

// The kernel's own account of what was installed.
func TestNftListsWhatWasMeant(t *testing.T) {
	w := newWorld(t)
	r := mustInstall(t, Params{NetNS: path(w.here), ExcludeInboundPorts: []uint16{2222}, MarkedListeners: true})
	counters, err := r.Counters()
	if err != nil || len(counters) != len(counterNames) {
		t.Errorf("%d counters (%v), want %d", len(counters), err, len(counterNames))
	}
	var list struct {
		Nftables []struct {
			Table *struct{ Family, Name string }
			Chain *struct {
				Name, Type, Hook, Policy string
				Prio                     int
			}
			Rule *struct {
				Chain string
				Expr  []json.RawMessage
			}
		}
	}
	if err := json.Unmarshal(run(t, "ip", "netns", "exec", w.here, "nft", "-j", "list", "ruleset"), &list); err != nil {
		t.Fatal(err)
	}
	got := map[string]int{}
	for _, e := range list.Nftables {
		switch {
		case e.Table != nil:
			if e.Table.Family != "inet" || e.Table.Name != "legation" {
				t.Errorf("a table %s %s", e.Table.Family, e.Table.Name)
			}
		case e.Chain != nil:
			c := e.Chain
			want := map[string]string{
				"nat_output": "nat output accept -100", "nat_prerouting": "nat prerouting accept -100",
				"output": "filter output drop 0", "input": "filter input drop 0",
			}[c.Name]
			if have := fmt.Sprintf("%s %s %s %d", c.Type, c.Hook, c.Policy, c.Prio); have != want {
				t.Errorf("chain %s is %s, want %s", c.Name, have, want)
			}
		case e.Rule != nil:
			got[e.Rule.Chain]++
		}
	}
	if want := map[string]int{"nat_output": 3, "nat_prerouting": 6, "output": 10, "input": 13}; fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("rules %v, want %v", got, want)
	}
	text := string(run(t, "ip", "netns", "exec", w.here, "nft", "list", "ruleset"))
	for _, line := range []string{
		"meta mark 0x00000539 return",
		`oifname "lo" return`,
		`meta l4proto tcp counter name "outbound_captured" redirect to :15001`,
		`meta l4proto tcp counter name "inbound_captured" redirect to :15006`,
		"fib daddr type != local return",
		"tcp dport 2222 return",
		"ct status dnat accept",
		"ct direction reply ct state established,related accept",
		`meta l4proto tcp counter name "outbound_tcp_refused" reject with tcp reset`,
		"udp dport 53 accept",
		`socket mark != 0x00000539 counter name "unmarked_refused" reject with tcp reset`,
	} {
		if !strings.Contains(text, line) {
			t.Errorf("nft does not list: %s", line)
		}
	}
	if t.Failed() {
		t.Log(text)
	}
}
