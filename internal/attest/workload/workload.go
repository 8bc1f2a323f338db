// Package workload answers "which process is calling, and what is true of
// it": a local caller, held by pidfd so that a reused pid cannot stand in for
// it, becomes selectors that come from the kernel alone.
package workload

// Selector is "type:value", e.g. "unix:uid:1000", "unix:path:/usr/bin/python3".
// The types: unix:uid, unix:user, unix:gid, unix:group,
// unix:supplementary_gid, unix:supplementary_group, unix:path, unix:sha256,
// cgroup:<path>.
type Selector = string

// Matches reports whether a caller that has the sorted selectors has has all
// that want asks for. An empty want matches nobody.
func Matches(has, want []Selector) bool {
	if len(want) == 0 {
		return false
	}
	set := make(map[Selector]struct{}, len(has))
	for _, s := range has {
		set[s] = struct{}{}
	}
	for _, w := range want {
		if _, ok := set[w]; !ok {
			return false
		}
	}
	return true
}
