//go:build unix

package folder_test

import (
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/legation-io/legation/sdk/renewal/folder"
)

// A54: one file that never ends stops nobody.
func TestA54APipeAmongTheCertificatesIsNotWaitedFor(t *testing.T) {
	dir := t.TempDir()
	if err := syscall.Mkfifo(filepath.Join(dir, "a.yaml"), 0o600); err != nil {
		t.Fatal(err)
	}
	opened := make(chan error, 1)
	go func() {
		_, err := folder.Open(folder.Config{Dir: dir, State: t.TempDir()})
		opened <- err
	}()
	select {
	case err := <-opened:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(time.Minute):
		t.Fatal("it waits for the pipe")
	}
}
