package envoy

import (
	"net/netip"
	"sync"
	"time"
)

// Direction of a connection, seen from the program that this Envoy serves.
type Direction string

// The directions.
const (
	Inbound  Direction = "inbound"
	Outbound Direction = "outbound"
)

// Connection is one live mTLS connection of an Envoy and who is on it.
type Connection struct {
	// ID is Envoy's stream id, unique over restarts.
	ID        string
	Direction Direction
	// Local and Remote are the accepted socket's addresses: inbound the
	// mTLS side, outbound the program's side.
	Local, Remote netip.AddrPort
	// Destination is where the caller meant to go: Local unless the
	// connection was captured.
	Destination netip.AddrPort
	// UpstreamLocal and UpstreamRemote are the onward socket's: inbound the
	// program's side, outbound the mTLS side.
	UpstreamLocal, UpstreamRemote netip.AddrPort
	UpstreamCluster               string
	// PeerID is the peer's SPIFFE ID and PeerSerial its certificate's
	// serial, lower-case hex without leading zeros. Empty where the
	// connection carries no TLS.
	PeerID, PeerSerial string
	TLSVersion         string // e.g. TLSv1.3
	Cipher             string // e.g. TLS_AES_128_GCM_SHA256
	Group              string // key exchange, e.g. X25519MLKEM768
	SNI                string
	Since              time.Time
	// Ready is how long accept, handshake and the onward connection took.
	Ready time.Duration
}

// Pair is the mTLS socket: the one to end when the peer is revoked.
func (c *Connection) Pair() Pair {
	if c.Direction == Outbound {
		return Pair{c.UpstreamLocal, c.UpstreamRemote}
	}
	return Pair{c.Local, c.Remote}
}

// maxConnections bounds a table: twice what one Envoy may hold, so that
// entries whose end was never told cannot grow without limit.
const maxConnections = 2 * DefaultMaxConnections

// Table holds the open connections of one Envoy. The zero Table is empty and
// ready.
type Table struct {
	mu     sync.Mutex // guards what follows
	byID   map[string]*Connection
	byPair map[Pair]*Connection
}

// Open lists the connections for which keep returns true (nil: all). The
// Connections are shared: read only.
func (t *Table) Open(keep func(*Connection) bool) []*Connection {
	t.mu.Lock()
	defer t.mu.Unlock()
	var out []*Connection
	for _, c := range t.byID {
		if keep == nil || keep(c) {
			out = append(out, c)
		}
	}
	return out
}

// Len is the number of open connections.
func (t *Table) Len() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return len(t.byID)
}

// Reset forgets everything: the Envoy was replaced by a new process.
func (t *Table) Reset() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.byID, t.byPair = nil, nil
}

// add puts c in, replacing one with the same addresses whose end was missed.
// It reports false when the table is full.
func (t *Table) add(c *Connection) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.byID == nil {
		t.byID, t.byPair = map[string]*Connection{}, map[Pair]*Connection{}
	}
	if old := t.byPair[c.Pair()]; old != nil {
		delete(t.byID, old.ID)
	}
	if len(t.byID) >= maxConnections {
		delete(t.byPair, c.Pair())
		return false
	}
	t.byID[c.ID] = c
	t.byPair[c.Pair()] = c
	return true
}

func (t *Table) has(id string) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.byID[id] != nil
}

// remove takes the connection out and returns it, or nil.
func (t *Table) remove(id string) *Connection {
	t.mu.Lock()
	defer t.mu.Unlock()
	c := t.byID[id]
	if c == nil {
		return nil
	}
	delete(t.byID, id)
	if t.byPair[c.Pair()] == c {
		delete(t.byPair, c.Pair())
	}
	return c
}
