package workload

import (
	"fmt"
	"slices"
	"strings"
)

// single are the selectors of which a process has at most one value: where
// another was wanted, its own is worth telling.
var single = []string{"unix:path:", "unix:sha256:", "unix:uid:", "unix:user:", "unix:gid:", "unix:group:"}

// Lacks says in words what is missing of an entry's selectors, and what a
// process that has the others has in their place.
func Lacks(has, missing []Selector) string {
	parts := make([]string, len(missing))
	for i, m := range missing {
		parts[i] = m
		for _, kind := range single {
			if !strings.HasPrefix(m, kind) {
				continue
			}
			if at := slices.IndexFunc(has, func(h Selector) bool { return strings.HasPrefix(h, kind) }); at >= 0 {
				parts[i] = fmt.Sprintf("%s (it has %s)", m, has[at])
			}
		}
	}
	return "the process lacks " + strings.Join(parts, ", ")
}
