package main

import (
	"fmt"
	"os"
	"os/exec"
	"strings"

	"github.com/legation-io/legation/internal/freeport"
)

// hosts is where services live: network namespaces joined by a bridge, or
// everything on loopback.
type hosts interface {
	describe() string
	setup(names []string) error
	// address of a service as others reach it: host, and the port its mTLS is at.
	address(name string) (string, int)
	// in prefixes a command so that it runs on that host.
	in(name string, argv ...string) []string
	// decoy is a second address of a service, where another is expected.
	decoy(name string) (string, int)
	// stranger prefixes a command that runs where nothing is captured.
	stranger(argv ...string) []string
	teardown()
}

// appPort is where each program listens, on its own loopback.
const appPort = 8080

type namespaces struct {
	prefix string
	names  []string
}

func newNamespaces() *namespaces { return &namespaces{prefix: fmt.Sprintf("lgn%d-", os.Getpid())} }

func (n *namespaces) describe() string {
	return "transparent capture: root, one network namespace for each service, nftables"
}

func (n *namespaces) space(name string) string { return n.prefix + name }

func (n *namespaces) setup(names []string) error {
	n.names = append([]string{"switch"}, names...)
	for _, name := range n.names {
		if err := command("ip", "netns", "add", n.space(name)); err != nil {
			return err
		}
		if err := command("ip", "-n", n.space(name), "link", "set", "lo", "up"); err != nil {
			return err
		}
	}
	sw := n.space("switch")
	for _, args := range [][]string{{"link", "add", "br0", "type", "bridge"}, {"link", "set", "br0", "up"}} {
		if err := command("ip", append([]string{"-n", sw}, args...)...); err != nil {
			return err
		}
	}
	for i, name := range names {
		port := fmt.Sprintf("p%d", i)
		for _, args := range [][]string{
			{"-n", sw, "link", "add", port, "type", "veth", "peer", "name", "eth0", "netns", n.space(name)},
			{"-n", sw, "link", "set", port, "master", "br0", "up"},
			{"-n", n.space(name), "addr", "add", n.ip(i) + "/24", "dev", "eth0"},
			{"-n", n.space(name), "link", "set", "eth0", "up"},
			{"-n", n.space(name), "route", "add", "default", "dev", "eth0"}, // virtual addresses have to lead somewhere
		} {
			if err := command("ip", args...); err != nil {
				return err
			}
		}
	}
	return nil
}

func (n *namespaces) ip(i int) string { return fmt.Sprintf("10.201.77.%d", 10+i) }

func (n *namespaces) address(name string) (string, int) {
	for i, known := range n.names[1:] {
		if known == name {
			return n.ip(i), appPort
		}
	}
	return "", 0
}

func (n *namespaces) in(name string, argv ...string) []string {
	return append([]string{"ip", "netns", "exec", n.space(name)}, argv...)
}

// decoy adds an address to a service's host.
func (n *namespaces) decoy(name string) (string, int) {
	address := "10.201.77.99"
	_ = command("ip", "-n", n.space(name), "addr", "add", address+"/24", "dev", "eth0")
	return address, appPort
}

func (n *namespaces) stranger(argv ...string) []string { return n.in("stranger", argv...) }

func (n *namespaces) teardown() {
	for _, name := range n.names {
		_ = exec.Command("ip", "netns", "del", n.space(name)).Run()
	}
}

func command(name string, args ...string) error {
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, strings.TrimSpace(string(out)))
	}
	return nil
}

// loopback gives each service an mTLS port and a program port on 127.0.0.1.
type loopback struct{ ports map[string][2]int }

func (l *loopback) describe() string {
	return "explicit local ports: no root needed (and no isolation between a program and its proxy)"
}

func (l *loopback) setup(names []string) error {
	l.ports = map[string][2]int{}
	for _, name := range names {
		mtls, err := freeport.Find()
		if err != nil {
			return err
		}
		app, err := freeport.Find()
		if err != nil {
			return err
		}
		l.ports[name] = [2]int{mtls, app}
	}
	return nil
}

func (l *loopback) address(name string) (string, int)    { return "127.0.0.1", l.ports[name][0] }
func (l *loopback) in(_ string, argv ...string) []string { return argv }
func (l *loopback) decoy(name string) (string, int)      { return l.address(name) }
func (l *loopback) stranger(argv ...string) []string     { return argv }
func (l *loopback) teardown()                            {}
