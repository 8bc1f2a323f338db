package envoy

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/legation-io/legation/internal/agent/envoy/envoytest"
)

func TestWhereAProcessMayMakeAControlGroup(t *testing.T) {
	const v1 = "31 30 0:27 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n32 30 0:28 / /sys/fs/cgroup/cpuset rw - cgroup cgroup rw,cpuset\n33 30 0:29 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,name=systemd\n"
	const v2 = "34 30 0:30 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n"
	for name, row := range map[string]struct{ memberships, mounts, want string }{
		"version 2":                           {"0::/user.slice/a.scope\n", v2, "/sys/fs/cgroup/user.slice/a.scope"},
		"version 2 comes before version 1":    {"5:memory:/m\n0::/a\n", v1 + v2, "/sys/fs/cgroup/a /sys/fs/cgroup/memory/m"},
		"version 1, systemd's own first":      {"5:memory:/m\n4:cpuset:/c\n1:name=systemd:/s\n", v1, "/sys/fs/cgroup/systemd/s /sys/fs/cgroup/memory/m"},
		"a hierarchy that is not mounted":     {"7:pids:/p\n", v1, ""},
		"in a container that sees a part":     {"0::/docker/12/x\n", strings.Replace(v2, " / ", " /docker/12 ", 1), "/sys/fs/cgroup/x"},
		"a group outside the part it sees":    {"0::/docker/123\n", strings.Replace(v2, " / ", " /docker/12 ", 1), ""},
		"a group outside its namespace":       {"0::/../elsewhere\n", v2, ""},
		"lines that nobody understands":       {"what\n::\n", "this\nis - not\n", ""},
		"joined controllers are mounted once": {"5:memory,hugetlb:/m\n", v1, "/sys/fs/cgroup/memory/m"},
	} {
		t.Run(name, func(t *testing.T) {
			var got []string
			for _, h := range hierarchies(row.memberships, row.mounts) {
				got = append(got, h.dir)
			}
			if strings.Join(got, " ") != row.want {
				t.Errorf("got %q, want %q", strings.Join(got, " "), row.want)
			}
		})
	}
}

func TestEnvoyHasItsOwnControlGroupAndLeavesNone(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Fatal("this test needs root: it makes a control group")
	}
	name := CgroupName("test")
	c, err := newCgroup(name)
	if err != nil {
		t.Fatal(err)
	}
	if err := c.remove(); err != nil {
		t.Fatal(err)
	}
	killed := filepath.Join(filepath.Dir(c.dir), cgroupPrefix+"999999999-x") // no process has this pid
	if err := os.Mkdir(killed, 0o755); err != nil {
		t.Fatal(err)
	}
	defer os.Remove(killed)
	t.Run("while it runs", func(t *testing.T) {
		r := startEnvoy(t, nil, func(p *ProcessParams) { p.Cgroup = name }, func(*envoytest.Agent) {})
		raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", r.proc.PID()))
		if err != nil {
			t.Fatal(err)
		}
		if !strings.Contains(string(raw), "/"+name+"\n") {
			t.Errorf("Envoy is in %s", raw)
		}
	})
	if _, err := os.Stat(c.dir); !os.IsNotExist(err) {
		t.Errorf("%s is left: %v", c.dir, err)
	}
	if _, err := os.Stat(killed); !os.IsNotExist(err) {
		t.Errorf("the group of one that was killed is left: %v", err)
	}
}
