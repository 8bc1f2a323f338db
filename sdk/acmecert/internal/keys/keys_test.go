package keys

import (
	"path/filepath"
	"testing"
)

func FuzzValidName(f *testing.F) {
	f.Add("certificates/ca/x.test/x.test.pair")
	f.Add("../../etc/passwd")
	f.Fuzz(func(t *testing.T, name string) {
		if Valid(name) == nil && !filepath.IsLocal(filepath.FromSlash(name)) {
			t.Fatalf("%q leads out of its folder", name)
		}
	})
}
