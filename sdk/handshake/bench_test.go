package handshake

import (
	"context"
	"crypto/tls"
	"net"
	"testing"
)

// BenchmarkHandshake compares one handshake, both ends in this process, with
// plain crypto/tls of the same settings: certificates at both ends, TLS 1.3,
// one hook, no verification in either.
func BenchmarkHandshake(b *testing.B) {
	plain, followed := pairs(b)
	b.Run("plain", func(b *testing.B) { b.ReportAllocs(); plain(b, b.N) })
	b.Run("followed", func(b *testing.B) { b.ReportAllocs(); followed(b, b.N) })
}

func TestFollowingAGoodHandshakeAllocatesLittle(t *testing.T) {
	plain, followed := pairs(t)
	// Both ends: the attempt, the configuration, the hello, the event.
	const most = 16
	const rounds = 50
	count := func(pair func(testing.TB, int)) float64 {
		return testing.AllocsPerRun(1, func() { pair(t, rounds) }) / rounds
	}
	without, with := count(plain), count(followed)
	if with-without > most {
		t.Errorf("%.0f allocations plain, %.0f followed", without, with)
	}
}

func pairs(t testing.TB) (plain, followed func(testing.TB, int)) {
	w := newWorld(t)
	server, client := serving(w.server), calling(w.client)
	server.SessionTicketsDisabled = true
	hooks := []Hook{func(context.Context, *Event) {}}
	ctx := context.Background()
	follow := func(side Side, base *tls.Config, wrap func(net.Conn, *tls.Config) *tls.Conn) func(net.Conn) error {
		return func(conn net.Conn) error {
			a := Begin(side, conn, hooks)
			config := a.Config(ctx, base, func(context.Context, tls.ConnectionState) error { return nil })
			return a.Run(ctx, wrap(a.Conn(), config))
		}
	}
	return func(t testing.TB, n int) {
			shakeHands(t, n, func(conn net.Conn) error { return tls.Server(conn, server).HandshakeContext(ctx) },
				func(conn net.Conn) error { return tls.Client(conn, client).HandshakeContext(ctx) })
		}, func(t testing.TB, n int) {
			shakeHands(t, n, follow(Server, server, tls.Server), follow(Client, client, tls.Client))
		}
}

func shakeHands(b testing.TB, n int, server, client func(net.Conn) error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	defer l.Close()
	done := make(chan error)
	go func() {
		for range n {
			conn, err := l.Accept()
			if err == nil {
				err = server(conn)
				conn.Close()
			}
			done <- err
		}
	}()
	for range n {
		conn, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			b.Fatal(err)
		}
		if err := client(conn); err != nil {
			b.Fatal(err)
		}
		if err := <-done; err != nil {
			b.Fatal(err)
		}
		conn.Close()
	}
}
