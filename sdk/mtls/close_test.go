package mtls_test

import (
	"context"
	"errors"
	"net"
	"sync"
	"testing"

	"github.com/legation-io/legation/sdk/mtls"
)

// Requests that wait for a connection dial at once when theirs is closed.
func TestADialerIsClosedUnderItsDials(t *testing.T) {
	p := newPair(t, nil)
	for range 20 {
		d, err := mtls.NewDialer(p.client)
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		var dialling sync.WaitGroup
		for range 4 {
			dialling.Go(func() {
				for ctx.Err() == nil {
					c, err := d.DialContext(ctx, "tcp", p.address())
					if err != nil {
						if ctx.Err() == nil && !errors.Is(err, net.ErrClosed) {
							t.Errorf("closed, it says %v", err)
						}
						return
					}
					c.Read(make([]byte, 1))
					c.Close()
				}
			})
		}
		until(t, "a connection is open", func() bool { return d.Open() > 0 })
		d.Close()
		if n := d.Open(); n != 0 {
			t.Errorf("%d connections are open after Close", n)
		}
		if _, err := d.DialContext(ctx, "tcp", p.address()); !errors.Is(err, net.ErrClosed) {
			t.Errorf("it dials after Close: %v", err)
		}
		dialling.Wait()
		cancel()
	}
}
