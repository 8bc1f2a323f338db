package memory_test

import (
	"errors"
	"fmt"
	"testing"
	"testing/synctest"

	"go.uber.org/goleak"

	"github.com/legation-io/legation/internal/store"
	"github.com/legation-io/legation/internal/store/memory"
	"github.com/legation-io/legation/internal/store/storetest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestSuite(t *testing.T) {
	storetest.Run(t, func(*testing.T) store.Store { return memory.New() })
}

func TestSuiteUnderSynctest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := memory.New()
		watch := s.Watch(t.Context(), "/", 1)
		go func() {
			for i := range 10 {
				_, _ = s.Commit(t.Context(), store.Txn{Then: []store.Op{{Key: fmt.Sprint("/", i)}}})
			}
		}()
		synctest.Wait()
		if len(watch) != 10 {
			t.Errorf("%d transactions wait in the watch, want 10", len(watch))
		}
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
}

func TestAWatcherThatLagsTooFarIsEnded(t *testing.T) {
	s := memory.New()
	watch := s.Watch(t.Context(), "/", 1)
	for i := range 1000 {
		if _, err := s.Commit(t.Context(), store.Txn{Then: []store.Op{{Key: fmt.Sprint("/", i)}}}); err != nil {
			t.Fatal(err)
		}
	}
	n := 0
	for range watch {
		n++
	}
	if n == 0 || n >= 1000 {
		t.Errorf("%d of 1000 transactions were delivered before the end, want some", n)
	}
}

func TestHistoryIsBounded(t *testing.T) {
	s := memory.New()
	for range 25_000 {
		if _, err := s.Commit(t.Context(), store.Txn{Then: []store.Op{{Key: "/a"}}}); err != nil {
			t.Fatal(err)
		}
	}
	if _, ok := <-s.Watch(t.Context(), "/", 2); ok {
		t.Error("a watch from 25,000 transactions ago was served")
	}
}

func TestFailingCommitsWriteNothing(t *testing.T) {
	s := memory.New()
	full := errors.New("disk full")
	s.FailCommits(func(store.Txn) error { return full })
	if _, err := s.Commit(t.Context(), store.Txn{Then: []store.Op{{Key: "/a"}}}); !errors.Is(err, full) {
		t.Errorf("commit: %v", err)
	}
	s.FailCommits(nil)
	if rev, err := s.Commit(t.Context(), store.Txn{Then: []store.Op{{Key: "/a"}}}); err != nil || rev != 2 {
		t.Errorf("the next commit has revision %d, error %v; want 2", rev, err)
	}
}
