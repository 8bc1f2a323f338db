package acme

import (
	"bytes"
	"context"
	"errors"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/legation-io/legation/sdk/acmecert"
	"github.com/legation-io/legation/test/acme/pebble"
)

// forgetful is a Storage that loses an account when the CA has just made it.
type forgetful struct {
	acmecert.Storage
	lost atomic.Int64
}

func (f *forgetful) Store(ctx context.Context, key string, value []byte) error {
	if strings.HasPrefix(key, "acme/") && bytes.Contains(value, []byte("my-account")) && f.lost.Add(1) <= 2 {
		return errors.New("the disk is full")
	}
	return f.Storage.Store(ctx, key, value)
}

func TestAnAccountThatCouldNotBeStoredIsNotRegisteredAgain(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	p := pebble.Start(t, s.options())
	storage := &forgetful{Storage: &acmecert.Memory{}}
	c := s.config(p, "one.test")
	c.Storage = storage
	s.manage(c)
	s.wait(patience)
	if n := storage.lost.Load(); n != 3 {
		t.Errorf("an account was stored %d times", n)
	}
	if p.Log.Count("There are now 1 accounts in memory") != 1 || p.Log.Count("There are now 2 accounts in memory") != 0 {
		t.Error("the CA has another number of accounts than one")
	}
}

func TestAnAccountThatTheCADoesNotKnowIsReplaced(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	p := pebble.Start(t, s.options())
	storage := &acmecert.Memory{}
	c := s.config(p, "one.test")
	c.Storage = storage
	m := s.manage(c)
	s.wait(patience)
	if err := m.Close(); err != nil {
		t.Fatal(err)
	}
	keys, err := storage.List(t.Context(), "acme", true)
	if err != nil || len(keys) != 1 {
		t.Fatal(keys, err)
	}
	account, err := storage.Load(t.Context(), keys[0])
	if err != nil {
		t.Fatal(err)
	}
	unknown := bytes.ReplaceAll(account, []byte("my-account/"), []byte("my-account/no"))
	if bytes.Equal(unknown, account) {
		t.Fatalf("%s", account)
	}
	if err := storage.Store(t.Context(), keys[0], unknown); err != nil {
		t.Fatal(err)
	}
	if err := storage.Delete(t.Context(), "certificates"); err != nil {
		t.Fatal(err)
	}
	replica := *s
	replica.run(c) // the first, which serves, answers from the shared Storage
	replica.wait(patience)
	if !strings.Contains(s.Log.String(), "does not know the ACME account") {
		t.Error("it does not say so")
	}
	if p.Log.Count("There are now 2 accounts in memory") != 1 {
		t.Error("no other account was registered")
	}
}
