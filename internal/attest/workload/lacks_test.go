package workload

import "testing"

func TestWhatIsMissingIsToldWithWhatIsThere(t *testing.T) {
	has := []Selector{"cgroup:/a", "unix:path:/usr/bin/bash", "unix:uid:0", "unix:supplementary_gid:4"}
	for _, tt := range []struct {
		name    string
		missing []Selector
		want    string
	}{
		{"another path", []Selector{"unix:path:/usr/bin/python3"}, "the process lacks unix:path:/usr/bin/python3 (it has unix:path:/usr/bin/bash)"},
		{"a kind it has none of", []Selector{"unix:user:web"}, "the process lacks unix:user:web"},
		{"a kind it may have many of", []Selector{"cgroup:/b"}, "the process lacks cgroup:/b"},
		{"several", []Selector{"unix:uid:7", "unix:gid:7"}, "the process lacks unix:uid:7 (it has unix:uid:0), unix:gid:7"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if got := Lacks(has, tt.missing); got != tt.want {
				t.Errorf("%q; want %q", got, tt.want)
			}
		})
	}
}
