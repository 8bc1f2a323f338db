package envoytest

import (
	"io"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/legation-io/legation/internal/freeport"
)

// Port is a TCP port on loopback at which nobody listens.
func Port(t testing.TB) uint32 {
	t.Helper()
	port, err := freeport.Find()
	if err != nil {
		t.Fatal(err)
	}
	return uint32(port)
}

// Echo answers every connection with what it says, until the test ends.
func Echo(t testing.TB, address string) uint32 {
	t.Helper()
	l, err := net.Listen("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	ServeEcho(t, l)
	return uint32(l.Addr().(*net.TCPAddr).Port)
}

// ServeEcho is Echo on a listener.
func ServeEcho(t testing.TB, l net.Listener) {
	var open sync.Map
	var all sync.WaitGroup
	all.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			open.Store(c, nil)
			all.Go(func() {
				defer c.Close()
				_, _ = io.Copy(c, c) // ends with the connection
			})
		}
	})
	t.Cleanup(func() {
		l.Close()
		open.Range(func(c, _ any) bool { c.(net.Conn).Close(); return true })
		all.Wait()
	})
}

// Eventually polls until ok, or fails the test after a minute.
func Eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	deadline := time.Now().Add(time.Minute)
	for !ok() {
		if time.Now().After(deadline) {
			t.Fatalf("not within a minute: %s", what)
		}
		time.Sleep(2 * time.Millisecond)
	}
}
