package world

import (
	"fmt"
	"os"
	"os/exec"
	"strings"
)

// Host is a machine: a network namespace on a bridge with the others, with an
// IPv4 and an IPv6 address. It is removed with the world.
type Host struct {
	Name, IPv4, IPv6 string

	w     *World
	space string
}

// Hosts makes machines.
func (w *World) Hosts(names ...string) []*Host {
	w.Helper()
	// Two bytes of the world's own network tell it from others'.
	part := strings.Split(w.ip, ".")
	prefix := fmt.Sprintf("lge2e-%d-%s-%s-", os.Getpid(), part[1], part[2])
	bridge := prefix + "switch"
	w.addSpace(bridge)
	w.ipCommand("-n", bridge, "link", "add", "br0", "type", "bridge")
	w.ipCommand("-n", bridge, "link", "set", "br0", "up")
	hosts := make([]*Host, len(names))
	for i, name := range names {
		h := &Host{w: w, Name: name, space: prefix + name, IPv4: fmt.Sprintf("10.202.77.%d", 10+i), IPv6: fmt.Sprintf("fd00:2e::%d", 10+i)}
		w.addSpace(h.space)
		port := fmt.Sprintf("p%d", i)
		w.ipCommand("-n", bridge, "link", "add", port, "type", "veth", "peer", "name", "eth0", "netns", h.space)
		w.ipCommand("-n", bridge, "link", "set", port, "master", "br0", "up")
		w.ipCommand("-n", h.space, "addr", "add", h.IPv4+"/24", "dev", "eth0")
		w.ipCommand("-n", h.space, "addr", "add", h.IPv6+"/64", "dev", "eth0", "nodad")
		w.ipCommand("-n", h.space, "link", "set", "eth0", "up")
		w.ipCommand("-n", h.space, "route", "add", "default", "dev", "eth0")
		w.ipCommand("-n", h.space, "-6", "route", "add", "default", "dev", "eth0")
		hosts[i] = h
	}
	return hosts
}

func (w *World) addSpace(name string) {
	w.Helper()
	w.ipCommand("netns", "add", name)
	w.Cleanup(func() {
		if out, err := exec.Command("ip", "netns", "del", name).CombinedOutput(); err != nil {
			w.Errorf("remove namespace %s: %v: %s", name, err, out)
		}
	})
	w.ipCommand("-n", name, "link", "set", "lo", "up")
}

func (w *World) ipCommand(args ...string) {
	w.Helper()
	if out, err := exec.Command("ip", args...).CombinedOutput(); err != nil {
		w.Fatalf("ip %s: %v: %s", strings.Join(args, " "), err, out)
	}
}

// In prefixes a command so that it runs on this host.
func (h *Host) In(argv ...string) []string {
	return append([]string{"ip", "netns", "exec", h.space}, argv...)
}
