package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/legation-io/legation/internal/store"
	"github.com/legation-io/legation/internal/store/etcd"
)

// storeCommit is a durable put of 1 KiB beside a bare write and fsync on the
// same disk, taken in turn.
func storeCommit(ctx context.Context, r *run) ([]Row, error) {
	dir := filepath.Join(r.dir, "store")
	defer os.RemoveAll(dir)
	s, err := etcd.Open(ctx, etcd.Config{Dir: dir})
	if err != nil {
		return nil, err
	}
	defer s.Close()
	value := make([]byte, 1024)
	bare, err := newBareFile(filepath.Join(dir, "bare"))
	if err != nil {
		return nil, err
	}
	defer bare.Close()
	var commits, syncs times
	n := of(r, 500, 100)
	for i := range n + 10 {
		start := time.Now()
		if _, err := s.Commit(ctx, store.Txn{Then: []store.Op{{Key: fmt.Sprint(store.Prefix, "bench.test/system/bench/", i%50), Value: value}}}); err != nil {
			return nil, err
		}
		commit := time.Since(start)
		took, err := bare.write(value)
		if err != nil {
			return nil, err
		}
		if i >= 10 { // warm
			commits, syncs = append(commits, commit), append(syncs, took)
		}
	}
	return []Row{
		fact("store commit, p50", commits.p50(), "ms").beside("write + fsync", syncs.p50()),
		fact("store commit, p99", commits.p99(), "ms").beside("write + fsync", syncs.p99()),
	}, nil
}

// bareFile is a preallocated file, written and synced in place as a
// write-ahead log is.
type bareFile struct {
	*os.File
	at int64
}

func newBareFile(path string) (*bareFile, error) {
	f, err := os.Create(path)
	if err != nil {
		return nil, err
	}
	if _, err = f.Write(make([]byte, 1<<20)); err == nil {
		err = f.Sync()
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return &bareFile{File: f}, nil
}

func (f *bareFile) write(b []byte) (time.Duration, error) {
	start := time.Now()
	if _, err := f.WriteAt(b, f.at%(1<<20)); err != nil {
		return 0, err
	}
	f.at += int64(len(b))
	err := f.Sync()
	return time.Since(start), err
}
