package session

import (
	"strings"
	"testing"
)

func TestWhatIsMissingBetweenProgramAndProxyIsSaid(t *testing.T) {
	for name, row := range map[string]struct {
		program, proxy uint32
		says           string
	}{
		"each has its own user":     {65001, 1337, ""},
		"both are one user":         {1000, 1000, "uid 1000"},
		"the program is root":       {0, 1337, "--user"},
		"both are root":             {0, 0, "both uid 0"},
		"the proxy alone is root's": {65001, 0, ""},
	} {
		t.Run(name, func(t *testing.T) {
			got := exposure(row.program, row.proxy)
			if row.says == "" && got != "" || !strings.Contains(got, row.says) {
				t.Errorf("%q, want %q", got, row.says)
			}
		})
	}
}
