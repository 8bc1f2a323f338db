//go:build unix && !linux

package secretmem

// advise does nothing: these advices are Linux's. A core dump has the region,
// and a forked child, too.
func advise([]byte) {}
