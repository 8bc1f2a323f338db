package e2e

import (
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/legation-io/legation/test/e2e/world"
)

var dialer = &net.Dialer{Timeout: world.Patience}

// tickets counts the session tickets that a server gave.
type tickets struct{ n atomic.Int32 }

func (c *tickets) Get(string) (*tls.ClientSessionState, bool) { return nil, false }
func (c *tickets) Put(_ string, s *tls.ClientSessionState) {
	if s != nil {
		c.n.Add(1)
	}
}

// doors are the TLS ports of a whole system.
func (p *pair) doors(sds string) map[string]string {
	return map[string]string{"the agents' port": p.Server.Listen, "an Envoy's inbound listener": p.inbound, "SDS over TCP": sds}
}

func sdsPair(t *testing.T) (*pair, *world.Node, string) {
	p := newPair(t)
	sds := p.IP() + ":15010"
	n := p.Join("n2", "--sds-listen", sds)
	world.Until(t, world.Patience, "SDS over TCP serves", func() error {
		conn, err := net.Dial("tcp", sds)
		if err == nil {
			conn.Close()
		}
		return err
	})
	return p, n, sds
}

func TestA25NoDoorResumesASession(t *testing.T) {
	t.Parallel()
	p, _, sds := sdsPair(t)
	_, cert := me(t, p.World, p.node)
	for name, address := range p.doors(sds) {
		t.Run(name, func(t *testing.T) {
			var cache tickets
			for range 3 {
				state, err := dialTLS(address, &tls.Config{ClientSessionCache: &cache, ServerName: "localhost", NextProtos: []string{"h2"}, Certificates: []tls.Certificate{*cert}})
				if err != nil && !errors.Is(err, io.EOF) {
					t.Fatal(err)
				}
				if state.DidResume {
					t.Error("a session was resumed")
				}
			}
			if n := cache.n.Load(); n != 0 {
				t.Errorf("%d session tickets were given out", n)
			}
		})
	}
}

func TestA36NothingBelowTLS13AndNoPlaintext(t *testing.T) {
	t.Parallel()
	p, _, sds := sdsPair(t)
	_, cert := me(t, p.World, p.node)
	for name, address := range p.doors(sds) {
		t.Run(name, func(t *testing.T) {
			for version, says := range map[uint16]string{tls.VersionTLS10: "TLS 1.0", tls.VersionTLS11: "TLS 1.1", tls.VersionTLS12: "TLS 1.2"} {
				if _, err := dialTLS(address, &tls.Config{MinVersion: version, MaxVersion: version, NextProtos: []string{"h2"}, Certificates: []tls.Certificate{*cert}}); err == nil || errors.Is(err, io.EOF) {
					t.Errorf("%s was accepted (%v)", says, err)
				}
			}
			state, err := dialTLS(address, &tls.Config{NextProtos: []string{"h2"}, Certificates: []tls.Certificate{*cert}})
			if err != nil && !errors.Is(err, io.EOF) || state.Version != tls.VersionTLS13 {
				t.Errorf("TLS 1.3: %v, version %x", err, state.Version)
			}
			if name != "an Envoy's inbound listener" && state.CipherSuite != tls.TLS_AES_256_GCM_SHA384 {
				t.Errorf("our own program chose %s from all suites of TLS 1.3", tls.CipherSuiteName(state.CipherSuite))
			}
			if got := plaintext(t, address); strings.HasPrefix(got, "HTTP/") && !strings.HasPrefix(got, "HTTP/1.0 400") {
				t.Errorf("plain HTTP was answered: %q", got)
			}
		})
	}
	// No certificate, no request.
	if _, err := dialTLS(p.inbound, &tls.Config{}); err == nil {
		t.Error("an Envoy takes connections without a certificate")
	}
}

// plaintext is what a port says to plain HTTP before it hangs up.
func plaintext(t testing.TB, address string) string {
	t.Helper()
	conn, err := dialer.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(world.Patience))
	fmt.Fprint(conn, "GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
	got, err := io.ReadAll(io.LimitReader(conn, 1<<16))
	var timeout net.Error
	if errors.As(err, &timeout) && timeout.Timeout() {
		t.Errorf("%s keeps a plaintext connection open", address)
	}
	return string(got)
}

func TestA42AValidSVIDOfAnotherServiceIsRefused(t *testing.T) {
	t.Parallel()
	p := newPair(t)
	host, _, _ := net.SplitHostPort(p.inbound)
	// "decoy" is declared to be carol; who answers there is bob.
	p.Apply(world.Identity("carol", "n1", "unix:path:/bin/carol") + world.Service("decoy", host, 15443, "carol"))
	outbound := p.IP() + ":9001"
	p.node.Run("eve", nil, []string{"--outbound", "decoy:8080=" + outbound}, p.As("alice"), "serve", p.IP()+":8080", "eve")
	world.Until(t, world.Patience, "the wrong server is refused, and the reason told", func() error {
		if get(outbound, "bob") == nil {
			t.Fatal("a server with the wrong identity was talked to")
		}
		var failures []struct{ Direction, Cause, PeerID, Reason string }
		if err := p.node.JSON(&failures, "connections", "--failures"); err != nil {
			return err
		}
		for _, f := range failures {
			if f.Cause == "wrong_name" && f.Direction == "outbound" {
				return nil
			}
		}
		return fmt.Errorf("failures: %+v", failures)
	})
	p.flows()
}

func TestA34SilentConnectionsStarveNobody(t *testing.T) {
	t.Parallel()
	p := newPair(t)
	for name, door := range map[string]struct {
		address string
		pid     int
	}{"the agents' port": {p.Server.Listen, p.Server.PID}, "an Envoy's inbound listener": {p.inbound, p.bob.Envoy()}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			before := world.RSS(t, door.pid)
			conns := make([]net.Conn, 0, 2000)
			defer func() {
				for _, c := range conns {
					c.Close()
				}
			}()
			for len(conns) < cap(conns) {
				conn, err := dialer.Dial("tcp", door.address)
				if err != nil {
					t.Fatalf("after %d connections: %v", len(conns), err)
				}
				conns = append(conns, conn)
			}
			// Others are served: agents, people, requests.
			if err := p.get(); err != nil {
				t.Errorf("a request: %v", err)
			}
			p.Apply(world.Identity("more", "n1", "unix:uid:4000000"))
			late := p.NewNode(fmt.Sprintf("late-%d", door.pid))
			late.Admit()
			late.Start()
			if grown := world.RSS(t, door.pid) - before; grown > 128<<20 {
				t.Errorf("2,000 silent connections cost %d MiB", grown>>20)
			}
			deadline := time.Now().Add(world.Patience)
			for i, c := range conns {
				_ = c.SetReadDeadline(deadline)
				_, err := io.Copy(io.Discard, c)
				var timeout net.Error
				if errors.As(err, &timeout) && timeout.Timeout() {
					t.Fatalf("silent connection %d is still open after %s", i, world.Patience)
				}
			}
			late.Stop()
		})
	}
}
