package capture

import (
	"fmt"
	"os/exec"
	"strings"
	"testing"

	"github.com/legation-io/legation/internal/fault"
)

func TestInstallRefusesWithTheReason(t *testing.T) {
	w := newWorld(t)
	t.Run("the machine's own namespace", func(t *testing.T) {
		_, err := Install(Params{})
		if fault.KindOf(err) != fault.Denied || !strings.Contains(err.Error(), "every program on it would be captured") {
			t.Errorf("%v", err)
		}
	})
	t.Run("a table of somebody else's", func(t *testing.T) {
		run(t, "ip", "netns", "exec", w.here, "nft", "add", "table", "inet", "legation")
		_, err := Install(Params{NetNS: path(w.here)})
		if fault.KindOf(err) != fault.Conflict || !strings.Contains(err.Error(), "nft delete table inet legation") {
			t.Errorf("%v", err)
		}
		run(t, "ip", "netns", "exec", w.here, "nft", "delete", "table", "inet", "legation")
	})
	t.Run("a table of a living process", func(t *testing.T) {
		other := exec.Command("sleep", "60")
		if err := other.Start(); err != nil {
			t.Fatal(err)
		}
		defer func() { _ = other.Process.Kill(); _ = other.Wait() }()
		started, err := startTime(other.Process.Pid)
		if err != nil {
			t.Fatal(err)
		}
		name := ownerName(other.Process.Pid, started)
		run(t, "ip", "netns", "exec", w.here, "nft", "add table inet legation; add counter inet legation "+name)
		_, err = Install(Params{NetNS: path(w.here)})
		if fault.KindOf(err) != fault.Conflict || !strings.Contains(err.Error(), fmt.Sprint(other.Process.Pid)) {
			t.Errorf("%v", err)
		}
	})
	t.Run("a table whose process is gone is replaced", func(t *testing.T) {
		r := mustInstall(t, Params{NetNS: path(w.here)})
		conn, err := r.conn()
		if err != nil {
			t.Fatal(err)
		}
		if owner, exists, err := r.owned(conn); owner != r.owner || !exists || err != nil {
			t.Errorf("owner %q %v %v", owner, exists, err)
		}
	})
	t.Run("without the right to", func(t *testing.T) {
		// As nobody even the look at another's namespace is refused.
		if got := asNobody(t, w.here, "install", "/proc/self/ns/net"); !strings.Contains(got, "wants CAP_NET_ADMIN") && !strings.Contains(got, "own network namespace") {
			t.Errorf("%s", got)
		}
	})
	for _, row := range []struct {
		name  string
		p     Params
		words string
	}{
		{"one port for both ways", Params{OutboundPort: 1, InboundPort: 1}, "must differ"},
		{"an excluded port of the proxy's", Params{ExcludeInboundPorts: []uint16{15006}}, "cannot be excluded"},
		{"port 0", Params{AllowUDPPorts: []uint16{0}}, "0 is no port"},
		{"too many ports", Params{ExcludeInboundPorts: make([]uint16, 65)}, "at most 64"},
		{"no such namespace", Params{NetNS: "/run/netns/none"}, "no such file"},
	} {
		t.Run(row.name, func(t *testing.T) {
			if _, err := Install(row.p); fault.KindOf(err) != fault.Invalid || !strings.Contains(err.Error(), row.words) {
				t.Errorf("%v", err)
			}
		})
	}
}

func TestRemoveTakesOnlyItsOwnAway(t *testing.T) {
	w := newWorld(t)
	r, err := Install(Params{NetNS: path(w.here)})
	if err != nil {
		t.Fatal(err)
	}
	run(t, "ip", "netns", "exec", w.here, "nft", "delete", "table", "inet", "legation")
	if _, err := r.Counters(); fault.KindOf(err) != fault.NotFound {
		t.Errorf("counters of a table that was removed: %v", err)
	}
	run(t, "ip", "netns", "exec", w.here, "nft", "add", "table", "inet", "legation")
	if err := r.Remove(); err != nil {
		t.Error(err)
	}
	if out := run(t, "ip", "netns", "exec", w.here, "nft", "list", "tables"); !strings.Contains(string(out), "inet legation") {
		t.Error("another's table was removed")
	}
}
