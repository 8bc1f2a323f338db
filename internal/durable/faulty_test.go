package durable_test

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"syscall"
	"testing"

	"github.com/legation-io/legation/internal/durable"
)

var (
	before = []byte("the old contents")
	after  = []byte("the new contents, longer")
)

func faulty(t *testing.T, seed uint64) *durable.Faulty {
	t.Helper()
	f := durable.NewFaulty(seed)
	if err := f.MkdirAll("/d", 0o700); err != nil {
		t.Fatal(err)
	}
	if err := f.WriteFile("/d/f", before, 0o600); err != nil {
		t.Fatal(err)
	}
	return f
}

func TestPowerCutAtAnyStepLeavesOldOrNew(t *testing.T) {
	sawOld, sawNew := false, false
	for seed := range uint64(40) {
		for step := 1; step <= 6; step++ {
			f := faulty(t, seed)
			f.CrashAt(step)
			err := f.WriteFile("/d/f", after, 0o600)
			if step <= 5 && !errors.Is(err, durable.ErrCrashed) || step == 6 && err != nil {
				t.Fatalf("step %d: %v", step, err)
			}
			if err != nil {
				if _, err := f.ReadFile("/d/f"); !errors.Is(err, durable.ErrCrashed) {
					t.Fatalf("a call after the power cut: %v", err)
				}
				f.Restart()
			} else {
				f.Crash()
			}
			got, err := f.ReadFile("/d/f")
			switch {
			case err != nil:
				t.Fatalf("seed %d, step %d: %v", seed, step, err)
			case bytes.Equal(got, after):
				sawNew = sawNew || step <= 5
			case bytes.Equal(got, before) && step <= 5:
				sawOld = true
			default:
				t.Fatalf("seed %d, step %d: %q", seed, step, got)
			}
		}
	}
	if !sawOld || !sawNew {
		t.Errorf("old seen: %v, new seen before it was acknowledged: %v; want both", sawOld, sawNew)
	}
}

func TestUnsyncedBytesAreTorn(t *testing.T) {
	torn := false
	for seed := range uint64(40) {
		f := faulty(t, seed)
		f.CrashAt(3) // the fsync of the temporary file
		_ = f.WriteFile("/d/f", after, 0o600)
		f.Restart()
		for _, name := range f.List() {
			if strings.Contains(name, ".tmp") {
				data, err := f.ReadFile(name)
				if err != nil || !bytes.HasPrefix(after, data) {
					t.Fatalf("%s: %q, %v", name, data, err)
				}
				torn = torn || len(data) < len(after)
			}
		}
	}
	if !torn {
		t.Error("no seed tore an un-synced file")
	}
}

func TestFailingStepsAreReportedAndUndone(t *testing.T) {
	for step, op := range []string{"open", "write", "fsync", "rename", "fsync"} {
		t.Run(fmt.Sprintf("%s, step %d", op, step+1), func(t *testing.T) {
			f := faulty(t, 1)
			f.FailAt(step+1, syscall.ENOSPC)
			err := f.WriteFile("/d/f", after, 0o600)
			var pe *fs.PathError
			if !errors.Is(err, syscall.ENOSPC) || !errors.As(err, &pe) || pe.Op != op {
				t.Fatalf("write: %v", err)
			}
			want := before
			if step == 4 { // renamed already
				want = after
			}
			if got, err := f.ReadFile("/d/f"); err != nil || !bytes.Equal(got, want) {
				t.Errorf("/d/f = %q, %v; want %q", got, err, want)
			}
			if names := f.List(); len(names) != 3 {
				t.Errorf("the failure left %v", names)
			}
			if err := f.WriteFile("/d/f", after, 0o600); err != nil {
				t.Errorf("the next write: %v", err)
			}
		})
	}
}

func TestUnsyncedNamesMayBeLostAndSyncedOnesNever(t *testing.T) {
	lost := false
	for seed := range uint64(20) {
		f := faulty(t, seed)
		f.FailAt(2, syscall.EIO) // the fsync of the folder
		if err := f.Remove("/d/f"); !errors.Is(err, syscall.EIO) {
			t.Fatal(err)
		}
		f.Crash()
		_, err := f.ReadFile("/d/f")
		lost = lost || errors.Is(err, fs.ErrNotExist)
		if err := f.Remove("/d/f"); err != nil {
			t.Fatal(err)
		}
		f.Crash()
		if _, err := f.ReadFile("/d/f"); err == nil {
			t.Fatalf("seed %d: an acknowledged removal was undone", seed)
		}
		if mode, err := f.Mode("/d"); err != nil || mode != fs.ModeDir|0o700 {
			t.Fatalf("/d: %v, %v", mode, err)
		}
	}
	if !lost {
		t.Error("no seed lost the name")
	}
}

func TestFoldersAndAbsentFiles(t *testing.T) {
	f := faulty(t, 1)
	if err := f.WriteFile("/none/f", nil, 0o600); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("write into no folder: %v", err)
	}
	if err := f.MkdirAll("/d/f/x", 0o700); !errors.Is(err, syscall.ENOTDIR) {
		t.Errorf("a folder under a file: %v", err)
	}
	if _, err := f.ReadFile("/d"); !errors.Is(err, syscall.EISDIR) {
		t.Errorf("read a folder: %v", err)
	}
	if err := f.Remove("/d"); !errors.Is(err, syscall.ENOTEMPTY) {
		t.Errorf("remove a folder with a file: %v", err)
	}
	if err := f.Remove("/d/none"); err != nil {
		t.Errorf("remove what is absent: %v", err)
	}
}
