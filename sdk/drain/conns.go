package drain

import (
	"context"
	"net"
	"net/http"
	"sync"
	"time"
)

// conns is what each connection of an http.Server is doing.
type conns struct {
	mu    sync.Mutex
	state map[net.Conn]http.ConnState
}

// follow learns it by the server's ConnState, which is called as before.
func follow(server *http.Server) *conns {
	c := &conns{state: map[net.Conn]http.ConnState{}}
	inner := server.ConnState
	server.ConnState = func(conn net.Conn, state http.ConnState) {
		c.note(conn, state)
		if inner != nil {
			inner(conn, state)
		}
	}
	return c
}

func (c *conns) note(conn net.Conn, state http.ConnState) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if _, known := c.state[conn]; !known && state != http.StateNew {
		return // what net/http does not begin it may not end either
	}
	if state == http.StateClosed || state == http.StateHijacked {
		delete(c.state, conn)
	} else {
		c.state[conn] = state
	}
}

// busy says whether a first request is awaited, and whether one is under way.
func (c *conns) busy() (fresh, active bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, state := range c.state {
		fresh = fresh || state == http.StateNew
		active = active || state == http.StateActive
	}
	return fresh, active
}

// silence is how long the first request of a connection is waited for, as in
// net/http's Shutdown. Tests change it.
var silence = 5 * time.Second

// quiet waits until every request is answered, those of connections that have
// sent nothing yet, too. The error is ctx's.
func (c *conns) quiet(ctx context.Context) error {
	patient := time.Now().Add(silence)
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		if fresh, active := c.busy(); !active && (!fresh || time.Now().After(patient)) {
			return nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}
