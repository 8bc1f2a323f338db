// Package memnet is the seam between programs and the network: a Transport
// listens and dials. Real is the machine's network. A Network is one in
// memory, made of mutexes and condition variables alone, so that
// testing/synctest can run time over it, with hosts that can be cut off from
// each other.
package memnet

import (
	"context"
	"net"
)

// Transport listens and dials as package net does, with its networks and
// addresses.
type Transport interface {
	Listen(network, addr string) (net.Listener, error)
	DialContext(ctx context.Context, network, addr string) (net.Conn, error)
}

// Real is the machine's network.
var Real Transport = osNet{}

type osNet struct{}

func (osNet) Listen(network, addr string) (net.Listener, error) { return net.Listen(network, addr) }

func (osNet) DialContext(ctx context.Context, network, addr string) (net.Conn, error) {
	var d net.Dialer
	return d.DialContext(ctx, network, addr)
}
