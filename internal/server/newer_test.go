package server

import (
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/legation-io/legation/internal/fault"
	"github.com/legation-io/legation/internal/store"
	"github.com/legation-io/legation/internal/store/etcd"
)

func TestDataOfANewerProgramIsRefusedAndNothingIsMade(t *testing.T) {
	c := configFor(t)
	if err := os.MkdirAll(c.DataDir, 0o700); err != nil {
		t.Fatal(err)
	}
	s, err := etcd.Open(t.Context(), etcd.Config{Dir: filepath.Join(c.DataDir, "store"), Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	newer := store.Format{Version: format.Version + 1, MinReader: format.Version + 1, WrittenBy: "legation 99.0"}
	if err := store.OpenFormat(t.Context(), s, newer, nil, nil); err != nil {
		t.Fatal(err)
	}
	before, err := s.Revision(t.Context())
	if err := errors.Join(err, s.Close()); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		err := Run(t.Context(), c, slog.New(slog.DiscardHandler), nil)
		if !fault.Is(err, fault.Invalid) || !strings.Contains(err.Error(), "legation 99.0") || !strings.Contains(err.Error(), "start the newer program") {
			t.Fatalf("%v", err)
		}
	}
	if _, err := os.Stat(filepath.Join(c.DataDir, "kek")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a key was made beside data that was refused: %v", err)
	}
	s, err = etcd.Open(t.Context(), etcd.Config{Dir: filepath.Join(c.DataDir, "store"), Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if after, err := s.Revision(t.Context()); err != nil || after != before {
		t.Errorf("revision %d, was %d (%v)", after, before, err)
	}
}
