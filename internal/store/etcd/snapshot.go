package etcd

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"go.etcd.io/etcd/server/v3/storage/backend"
	"go.etcd.io/etcd/server/v3/storage/schema"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"

	"github.com/legation-io/legation/internal/fault"
)

// Snapshot writes a copy of all data at one revision, history included, to a
// new file of mode 0600: etcd's own snapshot format, the page file followed
// by its SHA-256. It is there whole or not at all; an existing file is
// refused with fault.Conflict.
func (s *Store) Snapshot(ctx context.Context, path string) (err error) {
	if err := s.begin(ctx); err != nil {
		return err
	}
	defer s.open.RUnlock()
	defer func() {
		if err != nil {
			err = fmt.Errorf("write a snapshot of the store to %s: %w", path, err)
		}
	}()
	snap := s.srv.Backend().Snapshot()
	defer snap.Close()
	if free, err := s.gate.free(filepath.Dir(path)); err != nil {
		return err
	} else if free-snap.Size() < s.cfg.ReserveBytes {
		return fault.New(fault.Limited, "it has %d bytes, of which %d are free and %d kept in reserve", snap.Size(), free, s.cfg.ReserveBytes)
	}
	return writeNew(path, func(w io.Writer) error {
		h := sha256.New()
		if _, err := snap.WriteTo(io.MultiWriter(&checked{ctx, s.ctx, w}, h)); err != nil {
			return err
		}
		_, err := w.Write(h.Sum(nil))
		return err
	})
}

// checked stops a long copy when its context or the store ends.
type checked struct {
	ctx, store context.Context
	w          io.Writer
}

func (c *checked) Write(p []byte) (int, error) {
	if err := errors.Join(c.ctx.Err(), c.store.Err()); err != nil {
		return 0, err
	}
	return c.w.Write(p)
}

// writeNew makes a file of mode 0600 by way of a temporary one.
func writeNew(path string, fill func(io.Writer) error) (err error) {
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".tmp*")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	defer f.Close()
	if err := fill(f); err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return err
	}
	if err := os.Link(f.Name(), path); err != nil { // unlike rename it replaces nothing
		if errors.Is(err, fs.ErrExist) {
			return fault.New(fault.Conflict, "%s exists already: give another name", path)
		}
		return err
	}
	return syncDir(filepath.Dir(path))
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}

// Restore makes cfg.Dir, which has to be absent or empty, from a file that
// Snapshot wrote. Revisions go on where they were. A restore that is stopped
// in the middle leaves cfg.Dir as it was.
func Restore(ctx context.Context, cfg Config, snapshot string) error {
	if entries, err := os.ReadDir(cfg.Dir); err == nil && len(entries) > 0 {
		return fault.New(fault.Conflict, "restore into %s: it is not empty: move it away or give another directory", cfg.Dir)
	} else if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("restore into %s: %w", cfg.Dir, err)
	}
	staged := cfg
	staged.Dir = filepath.Clean(cfg.Dir) + ".restoring"
	if err := os.RemoveAll(staged.Dir); err != nil { // of an earlier try
		return fmt.Errorf("restore into %s: %w", cfg.Dir, err)
	}
	defer os.RemoveAll(staged.Dir)
	if err := makeDirs(staged.Dir); err != nil {
		return err
	}
	if err := copySnapshot(snapshot, dbPath(staged.Dir)); err != nil {
		return fmt.Errorf("restore %s: %w", snapshot, err)
	}
	if _, err := verifyPages(dbPath(staged.Dir)); err != nil {
		return fault.New(fault.Invalid, "restore %s: it is damaged: %w", snapshot, err)
	}
	if err := forgetCluster(dbPath(staged.Dir)); err != nil {
		return fmt.Errorf("restore %s: %w", snapshot, err)
	}
	s, err := Open(ctx, staged) // writes a log that begins with these pages
	if err != nil {
		return fmt.Errorf("restore %s: %w", snapshot, err)
	}
	if err := s.Close(); err != nil {
		return err
	}
	if err := os.Remove(cfg.Dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("restore into %s: %w", cfg.Dir, err)
	}
	if err := os.Rename(staged.Dir, cfg.Dir); err != nil {
		return fmt.Errorf("restore into %s: %w", cfg.Dir, err)
	}
	return syncDir(filepath.Dir(filepath.Clean(cfg.Dir)))
}

// copySnapshot checks the hash at the end and leaves it out.
func copySnapshot(from, to string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	st, err := in.Stat()
	if err != nil {
		return err
	}
	size := st.Size() - sha256.Size
	if size <= 0 || size%512 != 0 {
		return fault.New(fault.Invalid, "its %d bytes are no snapshot, or it was cut short", st.Size())
	}
	return writeNew(to, func(w io.Writer) error {
		h := sha256.New()
		if _, err := io.CopyN(io.MultiWriter(w, h), in, size); err != nil {
			return err
		}
		want := make([]byte, sha256.Size)
		if _, err := io.ReadFull(in, want); err != nil {
			return err
		}
		if string(want) != string(h.Sum(nil)) {
			return fault.New(fault.Invalid, "it is damaged (checksum)")
		}
		return nil
	})
}

// forgetCluster removes from a page file who its members were and how much of
// their log is applied: a new log begins.
func forgetCluster(path string) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fault.New(fault.Internal, "%v", p)
		}
	}()
	quiet := zap.NewNop().WithOptions(zap.WithFatalHook(zapcore.WriteThenPanic))
	be := backend.NewDefaultBackend(quiet, path)
	defer func() { err = errors.Join(err, be.Close()) }()
	if err := schema.NewMembershipBackend(quiet, be).TrimMembershipFromBackend(); err != nil {
		return err
	}
	tx := be.BatchTx()
	tx.LockOutsideApply()
	tx.UnsafeDelete(schema.Meta, schema.MetaConsistentIndexKeyName)
	tx.UnsafeDelete(schema.Meta, schema.MetaTermKeyName)
	tx.Unlock()
	be.ForceCommit()
	return nil
}
