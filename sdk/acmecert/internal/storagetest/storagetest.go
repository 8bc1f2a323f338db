// Package storagetest is the suite that every Storage of acmecert passes.
package storagetest

import (
	"context"
	"errors"
	"io/fs"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/caddyserver/certmagic"
)

// Run tests a Storage that is empty.
func Run(t *testing.T, s certmagic.Storage) {
	ctx := t.Context()
	store := func(t *testing.T, key, value string) {
		t.Helper()
		if err := s.Store(ctx, key, []byte(value)); err != nil {
			t.Fatal(err)
		}
	}
	t.Run("what was never stored is fs.ErrNotExist", func(t *testing.T) {
		if _, err := s.Load(ctx, "a/none"); !errors.Is(err, fs.ErrNotExist) {
			t.Error(err)
		}
		if _, err := s.Stat(ctx, "a/none"); !errors.Is(err, fs.ErrNotExist) {
			t.Error(err)
		}
		if _, err := s.List(ctx, "a", true); !errors.Is(err, fs.ErrNotExist) {
			t.Error(err)
		}
		if s.Exists(ctx, "a/none") {
			t.Error("it exists")
		}
		if err := s.Delete(ctx, "a/none"); err != nil {
			t.Error("deleting it is an error:", err)
		}
	})
	t.Run("what was stored last is loaded", func(t *testing.T) {
		store(t, "a/b/c.json", "one")
		store(t, "a/b/c.json", "two")
		got, err := s.Load(ctx, "a/b/c.json")
		if err != nil || string(got) != "two" || !s.Exists(ctx, "a/b/c.json") || !s.Exists(ctx, "a/b") || s.Exists(ctx, "a/b/c") {
			t.Error(string(got), err)
		}
		info, err := s.Stat(ctx, "a/b/c.json")
		if err != nil || !info.IsTerminal || time.Since(info.Modified).Abs() > time.Minute {
			t.Error(info, err)
		}
		if info, err := s.Stat(ctx, "a/b"); err != nil || info.IsTerminal {
			t.Error(info, err)
		}
	})
	t.Run("an empty value is a value", func(t *testing.T) {
		store(t, "empty", "")
		if got, err := s.Load(ctx, "empty"); err != nil || len(got) != 0 {
			t.Error(got, err)
		}
	})
	t.Run("a value and values below it lie side by side", func(t *testing.T) {
		store(t, "side", "v")
		store(t, "side/below", "w")
		if got, err := s.Load(ctx, "side"); err != nil || string(got) != "v" {
			t.Error(string(got), err)
		}
	})
	t.Run("lists are by whole segments", func(t *testing.T) {
		store(t, "l/x/1", "v")
		store(t, "l/x/2", "v")
		store(t, "l/y", "v")
		store(t, "lx", "v")
		if got, err := s.List(ctx, "l", true); err != nil || !slices.Equal(got, []string{"l/x/1", "l/x/2", "l/y"}) {
			t.Error(got, err)
		}
		if got, err := s.List(ctx, "l", false); err != nil || !slices.Equal(got, []string{"l/x", "l/y"}) {
			t.Error(got, err)
		}
		store(t, "l/y.json", "v") // in key order between l/y and what is below it
		store(t, "l/y/1", "v")
		if got, err := s.List(ctx, "l", false); err != nil || !slices.Equal(got, []string{"l/x", "l/y", "l/y.json"}) {
			t.Error(got, err)
		}
	})
	t.Run("deleting takes what is below, and nothing beside", func(t *testing.T) {
		if err := s.Delete(ctx, "l/x"); err != nil {
			t.Fatal(err)
		}
		if s.Exists(ctx, "l/x/1") || !s.Exists(ctx, "l/y") || !s.Exists(ctx, "lx") {
			t.Error("it took too much or too little")
		}
	})
	t.Run("a lock has one holder at a time", func(t *testing.T) {
		var inside atomic.Int32
		var working sync.WaitGroup
		for range 4 {
			working.Go(func() {
				for range 3 {
					if err := s.Lock(ctx, "issue_cert_*.example.org"); err != nil {
						t.Error(err)
						return
					}
					if inside.Add(1) != 1 {
						t.Error("two hold the lock")
					}
					inside.Add(-1)
					if err := s.Unlock(ctx, "issue_cert_*.example.org"); err != nil {
						t.Error(err)
					}
				}
			})
		}
		working.Wait()
	})
	t.Run("who waits for a lock goes when its context ends", func(t *testing.T) {
		if err := s.Lock(ctx, "held"); err != nil {
			t.Fatal(err)
		}
		short, cancel := context.WithTimeout(ctx, 50*time.Millisecond)
		defer cancel()
		if err := s.Lock(short, "held"); err == nil {
			t.Error("it got the lock")
		}
		if err := s.Lock(ctx, "another"); err != nil {
			t.Error("another name's lock is held up:", err)
		}
		for _, name := range []string{"held", "another"} {
			if err := s.Unlock(ctx, name); err != nil {
				t.Error(err)
			}
		}
		if err := s.Unlock(ctx, "held"); err == nil {
			t.Error("what is not held was unlocked")
		}
	})
}
