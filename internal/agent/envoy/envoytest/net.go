package envoytest

import (
	"io"
	"net"
	"sync"
	"testing"
	"time"
)

// Port is a TCP port on loopback that was free a moment ago.
func Port(t testing.TB) uint32 {
	t.Helper()
	for range 100 {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		port := uint32(l.Addr().(*net.TCPAddr).Port)
		l.Close()
		if _, given := ports.LoadOrStore(port, true); !given {
			return port
		}
	}
	t.Fatal("no port is free that was not given already")
	return 0
}

// ports that were given: the kernel may offer one again.
var ports sync.Map

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
