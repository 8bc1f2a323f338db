package node

import (
	"slices"
	"testing"

	"github.com/legation-io/legation/internal/fault"
)

func TestAgentsAreNamedOnlyWhatLeadsToTheirOwnMachine(t *testing.T) {
	for name, c := range map[string]struct {
		names []string
		kind  fault.Kind
	}{
		"none":                          {nil, ""},
		"localhost":                     {[]string{"localhost"}, ""},
		"a name below it":               {[]string{"localhost", "sds.localhost"}, ""},
		"another machine":               {[]string{"payments.example.org"}, fault.Denied},
		"one that only looks like it":   {[]string{"notlocalhost"}, fault.Denied},
		"one that merely begins so":     {[]string{"localhost.example.org"}, fault.Denied},
		"the control plane's":           {[]string{"legation"}, fault.Denied},
		"more than a certificate needs": {slices.Repeat([]string{"localhost"}, MaxLocalNames+1), fault.Invalid},
	} {
		t.Run(name, func(t *testing.T) {
			err := CheckLocalNames(c.names)
			if c.kind == "" && err != nil || c.kind != "" && !fault.Is(err, c.kind) {
				t.Errorf("CheckLocalNames(%q) = %v, want kind %q", c.names, err, c.kind)
			}
		})
	}
}
