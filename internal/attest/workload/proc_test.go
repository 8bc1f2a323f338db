package workload

import (
	"slices"
	"testing"
)

func TestA21CgroupSelectors(t *testing.T) {
	tests := []struct {
		name string
		raw  string
		want []Selector
	}{
		{"version 2: the cgroup and every folder above it", "0::/system.slice/web.service\n",
			[]Selector{"cgroup:/system.slice/web.service", "cgroup:/system.slice"}},
		{"a folder made below one's own keeps the upper ones", "0::/system.slice/web.service/sub\n",
			[]Selector{"cgroup:/system.slice/web.service/sub", "cgroup:/system.slice/web.service", "cgroup:/system.slice"}},
		{"in no cgroup", "0::/\n", nil},
		{"hybrid: the unified one speaks", "4:memory:/docker/a\n1:name=systemd:/docker/a\n0::/web\n", []Selector{"cgroup:/web"}},
		{"hybrid with an empty unified one: systemd speaks", "4:memory:/b\n1:name=systemd:/a\n0::/\n", []Selector{"cgroup:/a"}},
		{"version 1 on one path", "4:memory:/docker/a\n3:cpu,cpuacct:/docker/a\n2:pids:/docker\n0::/\n",
			[]Selector{"cgroup:/docker/a", "cgroup:/docker"}},
		{"version 1 in two places is ambiguous", "4:memory:/docker/victim\n3:cpu:/docker/attacker\n0::/\n", nil},
		{"ambiguous even when the third agrees", "4:memory:/docker/v\n3:cpu:/docker/a\n2:pids:/docker/v\n", nil},
		{"outside the agent's cgroup namespace", "0::/../victim\n", nil},
		{"a deleted cgroup", "0::/system.slice/web.service (deleted)\n", nil},
		{"a name that only begins like another's is another", "4:memory:/docker/a\n3:cpu:/docker/ab\n", nil},
		{"colons in the name belong to it", "0::/a:b\n", []Selector{"cgroup:/a:b"}},
		{"not the format", "nonsense\n", nil},
		{"an empty path", "::\n", nil},
		{"a path that is none", "0::web\n", nil},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			if got := cgroupSelectors(test.raw); !slices.Equal(got, test.want) {
				t.Errorf("got %q, want %q", got, test.want)
			}
		})
	}
}

func TestParseStatus(t *testing.T) {
	got, err := parseStatus([]byte("Name:\tUid:\\n\nUid:\t1\t2\t3\t4\nGid:\t5\t6\t7\t8\nGroups:\t9 10 \n"))
	if err != nil || got.uid != 2 || got.gid != 6 || !slices.Equal(got.groups, []uint32{9, 10}) {
		t.Errorf("%+v, %v", got, err)
	}
	for name, raw := range map[string]string{
		"nothing":          "",
		"no groups":        "Uid:\t1\t2\t3\t4\nGid:\t5\t6\t7\t8\n",
		"three ids":        "Uid:\t1\t2\t3\nGid:\t5\t6\t7\t8\nGroups:\n",
		"a negative id":    "Uid:\t1\t-2\t3\t4\nGid:\t5\t6\t7\t8\nGroups:\n",
		"a group too wide": "Uid:\t1\t2\t3\t4\nGid:\t5\t6\t7\t8\nGroups:\t4294967296\n",
	} {
		if got, err := parseStatus([]byte(raw)); err == nil {
			t.Errorf("%s: accepted as %+v", name, got)
		}
	}
}

func TestParseStartTime(t *testing.T) {
	fields := " S 1 1 1 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 4711 1 1"
	for _, name := range []string{"sleep", "a b", ") S 1", "((("} {
		if got, err := parseStartTime([]byte("12 (" + name + ")" + fields)); err != nil || got != 4711 {
			t.Errorf("name %q: %d, %v", name, got, err)
		}
	}
	if _, err := parseStartTime([]byte("12 (x) S 1")); err == nil {
		t.Error("a short line was accepted")
	}
}

func TestMatches(t *testing.T) {
	for _, test := range []struct {
		name      string
		has, want []Selector
		matches   bool
	}{
		{"all of them", []Selector{"a:1", "b:2", "c:3"}, []Selector{"a:1", "c:3"}, true},
		{"one is missing", []Selector{"a:1"}, []Selector{"a:1", "c:3"}, false},
		{"asking for nothing matches nobody", []Selector{"a:1"}, nil, false},
		{"having nothing", nil, []Selector{"a:1"}, false},
	} {
		if got := Matches(test.has, test.want); got != test.matches {
			t.Errorf("%s: %v", test.name, got)
		}
	}
}

func FuzzProc(f *testing.F) {
	f.Add("0::/system.slice/web.service\n")
	f.Add("4:memory:/docker/a\n1:name=systemd:/b\n")
	f.Add("Uid:\t1\t2\t3\t4\nGid:\t5\t6\t7\t8\nGroups:\t9\n")
	f.Add("::")
	f.Add("12 (x) S 1 1 1 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 4711 1 1")
	f.Fuzz(func(t *testing.T, raw string) {
		for _, s := range cgroupSelectors(raw) {
			if len(s) < len("cgroup:/x") || !plainPath(s[len("cgroup:"):]) {
				t.Errorf("%q gives %q", raw, s)
			}
		}
		parseStatus([]byte(raw))
		parseStartTime([]byte(raw))
	})
}
