package mtls

import (
	"net"
	"sync/atomic"
	"testing"
	"time"

	"github.com/legation-io/legation/sdk/internal/pkitest"
)

// counting counts what it accepted.
type counting struct {
	net.Listener
	n atomic.Int32
}

func (l *counting) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err == nil {
		l.n.Add(1)
	}
	return c, err
}

// A program that does not come back for more leaves newcomers to the kernel.
func TestWhoNobodyAcceptsTakesNoPlaceHere(t *testing.T) {
	const places, limit = 2, time.Minute
	d := pkitest.New(t, "example.org", nil)
	raw, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	inner := &counting{Listener: raw}
	l, err := NewListener(inner, ServerConfig{Source: d.Source("/server"), Authorize: AuthorizeMemberOf(d.TrustDomain), MaxHandshakes: places})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	dialer, err := NewDialer(ClientConfig{Source: d.Source("/client"), Authorize: AuthorizeMemberOf(d.TrustDomain)})
	if err != nil {
		t.Fatal(err)
	}
	defer dialer.Close()
	accepted := make(chan net.Conn, 1)
	go func() {
		c, err := l.Accept()
		if err != nil {
			t.Error(err)
		}
		accepted <- c
	}()
	waiting := func() int {
		l.core.pending.mu.Lock()
		defer l.core.pending.mu.Unlock()
		return l.core.pending.waiting
	}
	for n := range places + 1 {
		c, err := dialer.DialContext(t.Context(), "tcp", raw.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if n == 0 {
			defer (<-accepted).Close()
		}
		for end := time.Now().Add(limit); waiting() != n; time.Sleep(time.Millisecond) {
			if time.Now().After(end) {
				t.Fatalf("%d wait for Accept, want %d", waiting(), n)
			}
		}
	}
	for range 20 {
		c, err := net.Dial("tcp", raw.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
	}
	time.Sleep(50 * time.Millisecond) // nothing is to happen
	// One may have been accepted before the last place was taken.
	if n := inner.n.Load(); n > 1+places+1 {
		t.Errorf("%d were taken from the kernel, for %d places", n, places)
	}
	for range places {
		c, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		c.Close()
	}
}
