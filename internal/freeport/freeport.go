// Package freeport finds TCP ports for what tests, benchmarks and the demo
// start. It is imported by those only.
package freeport

import (
	"errors"
	"math/rand/v2"
	"net"
	"strconv"
	"sync"
)

// given are the ports that this process has got already.
var given sync.Map

// Find returns a TCP port of 127.0.0.1 that nobody listens at. It is below
// those that the kernel gives to connections (net.ipv4.ip_local_port_range), so
// that none takes it before whoever it is for listens, or while that one is
// restarted.
func Find() (int, error) {
	for range 100 {
		port := 20000 + rand.IntN(12000)
		if _, taken := given.LoadOrStore(port, true); taken {
			continue
		}
		if l, err := net.Listen("tcp", addr(port)); err == nil {
			l.Close()
			return port, nil
		}
	}
	return 0, errors.New("no TCP port of a hundred is free")
}

// Address is Find as 127.0.0.1:PORT.
func Address() (string, error) {
	port, err := Find()
	return addr(port), err
}

func addr(port int) string { return net.JoinHostPort("127.0.0.1", strconv.Itoa(port)) }
