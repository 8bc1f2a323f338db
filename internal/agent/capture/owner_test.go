package capture

import "testing"

// The owner's name is read from a table that anybody with the right to may
// have written.
func FuzzOwner(f *testing.F) {
	f.Add("owner_12_345")
	f.Add("owner_-1_0")
	f.Add("owner_1_2 3")
	f.Fuzz(func(t *testing.T, name string) {
		if pid, started, ok := parseOwner(name); ok && ownerName(pid, started) != name {
			t.Errorf("%q reads as %d %d", name, pid, started)
		}
	})
}
