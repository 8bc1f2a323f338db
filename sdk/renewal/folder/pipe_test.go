//go:build unix

package folder_test

import (
	"log/slog"
	"os"
	"path/filepath"
	"sync"
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

// The same, where the pipe takes the place of a file at that instant.
func TestA54APipeThatTakesAFilesPlaceIsNotWaitedFor(t *testing.T) {
	dir, state := t.TempDir(), t.TempDir()
	path := filepath.Join(dir, "a.yaml")
	done := make(chan struct{})
	var swapping sync.WaitGroup
	swapping.Go(func() {
		for n := 0; ; n++ {
			select {
			case <-done:
				return
			default:
			}
			next := filepath.Join(dir, ".next")
			var err error
			if n%2 == 0 {
				err = os.WriteFile(next, nil, 0o600)
			} else {
				err = syscall.Mkfifo(next, 0o600)
			}
			if err == nil {
				err = os.Rename(next, path)
			}
			if err != nil {
				t.Error(err)
				return
			}
		}
	})
	defer swapping.Wait()
	defer close(done)
	opened := make(chan error, 1)
	go func() {
		for range 200 {
			if _, err := folder.Open(folder.Config{Dir: dir, State: state, Logger: slog.New(slog.DiscardHandler)}); err != nil {
				opened <- err
				return
			}
		}
		opened <- nil
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
