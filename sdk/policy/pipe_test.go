//go:build unix

package policy_test

import (
	"context"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/legation-io/legation/sdk/policy"
)

// Opening a pipe waits for whoever writes to it: that must hold up neither the
// next bundle nor the program's end.
func TestA54APipeInPlaceOfABundleIsNotWaitedFor(t *testing.T) {
	for _, pipe := range []string{"b.tar.gz", "highest"} {
		dir := t.TempDir()
		if err := syscall.Mkfifo(filepath.Join(dir, pipe), 0o600); err != nil {
			t.Fatal(err)
		}
		f := policy.BundleFile{Path: filepath.Join(dir, "b.tar.gz"), Keys: []policy.Key{newSigner(t).public()}, State: filepath.Join(dir, "highest")}
		loaded := make(chan error, 1)
		go func() { loaded <- f.Load(context.Background(), empty()) }()
		select {
		case err := <-loaded:
			if err == nil || pipe == "b.tar.gz" && !strings.Contains(err.Error(), "no plain file") {
				t.Errorf("%s: %v", pipe, err)
			}
		case <-time.After(time.Minute):
			t.Fatalf("it waits for the pipe %s", pipe)
		}
	}
}
