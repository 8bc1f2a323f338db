package etcd

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/legation-io/legation/internal/store"
)

func BenchmarkOpenNew(b *testing.B) {
	for b.Loop() {
		s, err := Open(b.Context(), Config{Dir: filepath.Join(b.TempDir(), "d")})
		if err != nil {
			b.Fatal(err)
		}
		b.StopTimer()
		s.Close()
		b.StartTimer()
	}
}

func BenchmarkOpenAgain(b *testing.B) {
	dir := b.TempDir()
	s, err := Open(b.Context(), Config{Dir: dir})
	if err != nil {
		b.Fatal(err)
	}
	for i := range 1000 {
		if _, err := s.Commit(b.Context(), store.Txn{Then: []store.Op{{Key: fmt.Sprint("/", i), Value: make([]byte, 1000)}}}); err != nil {
			b.Fatal(err)
		}
	}
	s.Close()
	for b.Loop() {
		s, err := Open(b.Context(), Config{Dir: dir})
		if err != nil {
			b.Fatal(err)
		}
		b.StopTimer()
		s.Close()
		b.StartTimer()
	}
}

// BenchmarkFsync is the floor under BenchmarkCommit: one write to a
// preallocated file and one fdatasync.
func BenchmarkFsync(b *testing.B) {
	f, err := os.Create(filepath.Join(b.TempDir(), "f"))
	if err != nil {
		b.Fatal(err)
	}
	defer f.Close()
	buf := make([]byte, 4096)
	if _, err := f.Write(make([]byte, 1<<20)); err != nil {
		b.Fatal(err)
	}
	at := int64(0)
	for b.Loop() {
		if _, err := f.WriteAt(buf, at%(1<<20)); err != nil {
			b.Fatal(err)
		}
		if err := f.Sync(); err != nil {
			b.Fatal(err)
		}
		at += 4096
	}
}

func BenchmarkCommit(b *testing.B) {
	s, err := Open(b.Context(), Config{Dir: b.TempDir()})
	if err != nil {
		b.Fatal(err)
	}
	defer s.Close()
	value := make([]byte, 1000)
	for b.Loop() {
		if _, err := s.Commit(b.Context(), store.Txn{Then: []store.Op{{Key: "/a", Value: value}}}); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkCommitFromMany(b *testing.B) {
	s, err := Open(b.Context(), Config{Dir: b.TempDir()})
	if err != nil {
		b.Fatal(err)
	}
	defer s.Close()
	value := make([]byte, 1000)
	b.SetParallelism(32)
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			if _, err := s.Commit(b.Context(), store.Txn{Then: []store.Op{{Key: "/a", Value: value}}}); err != nil {
				b.Error(err)
			}
		}
	})
}

func BenchmarkGet(b *testing.B) {
	s, err := Open(b.Context(), Config{Dir: b.TempDir()})
	if err != nil {
		b.Fatal(err)
	}
	defer s.Close()
	if _, err := s.Commit(b.Context(), store.Txn{Then: []store.Op{{Key: "/a", Value: make([]byte, 1000)}}}); err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		if _, err := s.Get(b.Context(), "/a"); err != nil {
			b.Fatal(err)
		}
	}
}
