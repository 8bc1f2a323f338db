package etcd

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/legation-io/legation/internal/fault"
	"github.com/legation-io/legation/internal/store"
)

func TestAStoreAtItsQuotaRefusesWritesAndRecoversByDeletion(t *testing.T) {
	s := openAt(t, Config{Dir: t.TempDir(), QuotaBytes: 4 << 20})
	value := make([]byte, 256<<10)
	n := 0
	var err error
	for ; n < 100; n++ {
		if _, err = s.Commit(t.Context(), store.Txn{Then: []store.Op{{Key: fmt.Sprint("/big/", n), Value: value}}}); err != nil {
			break
		}
	}
	if !fault.Is(err, fault.Limited) || !strings.Contains(err.Error(), "quota") || n < 4 {
		t.Fatalf("after %d values: %v; want it limited and to say why", n, err)
	}
	rev, _ := s.Revision(t.Context())
	if kvs, at, err := s.List(t.Context(), "/big/"); err != nil || len(kvs) != n || at != rev {
		t.Fatalf("a full store lists %d of %d values at %d, %v", len(kvs), n, at, err)
	}
	for i := range n {
		if _, err := s.Commit(t.Context(), store.Txn{Then: []store.Op{{Key: fmt.Sprint("/big/", i), Delete: true}}}); err != nil {
			t.Fatalf("delete from a full store: %v", err)
		}
	}
	// Only history is left now, and a refusal makes that be dropped.
	deadline := time.Now().Add(time.Minute)
	for {
		_, err := s.Commit(t.Context(), store.Txn{Then: []store.Op{{Key: "/big/again", Value: make([]byte, 2<<20)}}})
		if err == nil {
			break
		}
		if !fault.Is(err, fault.Limited) || time.Now().After(deadline) {
			t.Fatalf("after everything was deleted: %v", err)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

func TestADiskWithoutItsReserveRefusesWritesAndRecovers(t *testing.T) {
	s := openAt(t, Config{Dir: t.TempDir(), ReserveBytes: 1000})
	put(t, s, "/a", "1")
	free := int64(999)
	s.gate.mu.Lock()
	s.gate.free = func(string) (int64, error) { return free, nil }
	s.gate.checked = time.Time{}
	s.gate.mu.Unlock()
	_, err := s.Commit(t.Context(), store.Txn{Then: []store.Op{{Key: "/a", Value: []byte("2")}}})
	if !fault.Is(err, fault.Limited) || !strings.Contains(err.Error(), "disk") {
		t.Fatalf("commit: %v", err)
	}
	if kv, err := s.Get(t.Context(), "/a"); err != nil || string(kv.Value) != "1" {
		t.Errorf("/a = %q, %v", kv.Value, err)
	}
	free = 1 << 30
	put(t, s, "/a", "3")
}

func TestAFullDiskLeavesReadsAndRecovers(t *testing.T) {
	onSmallDisk(t, "full disk", "160m")
}

func childFullDisk(ctx context.Context, disk string) error {
	dir := filepath.Join(disk, "data")
	s, err := Open(ctx, Config{Dir: dir, ReserveBytes: 40 << 20, Log: slog.New(slog.NewTextHandler(os.Stderr, nil))})
	if err != nil {
		return err
	}
	value := make([]byte, 1<<20)
	n := 0
	for ; n < 200; n++ {
		if _, err = s.Commit(ctx, store.Txn{Then: []store.Op{{Key: fmt.Sprint("/", n), Value: value}}}); err != nil {
			break
		}
	}
	if !fault.Is(err, fault.Limited) || n < 10 {
		return fmt.Errorf("after %d MiB: %v; want it limited", n, err)
	}
	filler, err := fill(filepath.Join(disk, "filler")) // somebody else takes all the rest
	if err != nil {
		return err
	}
	time.Sleep(2 * batchInterval) // pages acknowledged before are written now
	if err := s.halt.err(); err != nil {
		return fmt.Errorf("the store did not survive a disk filled by others: %w", err)
	}
	rev, err := s.Revision(ctx)
	if err != nil {
		return err
	}
	if _, err := s.Commit(ctx, store.Txn{Then: []store.Op{{Key: "/more"}}}); !fault.Is(err, fault.Limited) {
		return fmt.Errorf("commit to a full disk: %v", err)
	}
	if now, _ := s.Revision(ctx); now != rev {
		return fmt.Errorf("the refused commit moved the revision from %d to %d", rev, now)
	}
	if kvs, _, err := s.List(ctx, "/"); err != nil || len(kvs) != n {
		return fmt.Errorf("list on a full disk: %d of %d values, %v", len(kvs), n, err)
	}
	if err := s.Snapshot(ctx, filepath.Join(disk, "snapshot")); !fault.Is(err, fault.Limited) {
		return fmt.Errorf("snapshot to a full disk: %v", err)
	}
	if err := os.Remove(filler); err != nil {
		return err
	}
	for range 600 { // half a minute
		if _, err = s.Commit(ctx, store.Txn{Then: []store.Op{{Key: "/0", Delete: true}}}); err == nil {
			return s.Close()
		}
		time.Sleep(50 * time.Millisecond)
	}
	return fmt.Errorf("after room was made: %w", err)
}

// fill writes a file until the disk is full.
func fill(path string) (string, error) {
	f, err := os.Create(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	for chunk := make([]byte, 1<<20); len(chunk) > 0; {
		if _, err := f.Write(chunk); errors.Is(err, syscall.ENOSPC) {
			chunk = chunk[:len(chunk)/2]
		} else if err != nil {
			return "", err
		}
	}
	return path, nil
}

func TestADiskThatFailsUnderWritesEndsTheStoreButNotItsReads(t *testing.T) {
	onSmallDisk(t, "disk full under writes", "120m")
}

// childDiskFails takes away the gate, so that etcd itself meets the full disk.
func childDiskFails(ctx context.Context, disk string) error {
	dir := filepath.Join(disk, "data")
	s, err := Open(ctx, Config{Dir: dir, Log: slog.New(slog.NewTextHandler(os.Stderr, nil))})
	if err != nil {
		return err
	}
	if _, err := s.Commit(ctx, store.Txn{Then: []store.Op{{Key: "/a", Value: []byte("kept")}}}); err != nil {
		return err
	}
	if err := s.gate.backLocked(40 << 20); err != nil { // pages have room, the log has not
		return err
	}
	if _, err := fill(filepath.Join(disk, "filler")); err != nil {
		return err
	}
	s.gate.free = func(string) (int64, error) { return 1 << 40, nil }
	value := make([]byte, 1<<20)
	n := 0
	for err = nil; err == nil && n < 100; n++ {
		_, err = s.Commit(ctx, store.Txn{Then: []store.Op{{Key: fmt.Sprint("/n/", n), Value: value}}})
	}
	if !fault.Is(err, fault.Unavailable) || !strings.Contains(err.Error(), "disk failed") {
		return fmt.Errorf("after %d MiB: %v; want it unavailable", n, err)
	}
	select {
	case <-s.Failed():
	default:
		return errors.New("Failed does not tell")
	}
	if kv, err := s.Get(ctx, "/a"); err != nil || string(kv.Value) != "kept" {
		return fmt.Errorf("get afterwards: %q, %v", kv.Value, err)
	}
	if kvs, _, err := s.List(ctx, "/n/"); err != nil || len(kvs) != n-1 {
		return fmt.Errorf("list afterwards: %d of %d acknowledged values, %v", len(kvs), n-1, err)
	}
	return s.Close()
}
