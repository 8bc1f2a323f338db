// Package durable reads and writes files. What it writes is whole after a crash
// or a power cut, the old content or the new, and only its owner can read it.
package durable

import (
	"cmp"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"syscall"
	"time"
)

// Create writes a file that is not there yet, and syncs it; its name is
// durable only after SyncDir.
func Create(path string, data []byte) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err == nil {
		err = f.Sync()
	}
	return errors.Join(err, f.Close())
}

// Replace writes a file in one step: aside, then renamed. After an error the
// old content is there, or, when only the folder could not be synced, the new.
// A process that is killed may leave a file ".new-…" beside it: see Tidy.
func Replace(path string, data []byte) error {
	next := filepath.Join(filepath.Dir(path), beside+rand.Text())
	err := Create(next, data)
	if err == nil {
		err = os.Rename(next, path)
	}
	if err != nil {
		os.Remove(next)
		return err
	}
	return SyncDir(filepath.Dir(path))
}

const beside = ".new-" // and rand.Text

var left = regexp.MustCompile(`^\` + beside + `[A-Z2-7]{26}$`)

// Read returns a plain file of at most so many bytes.
func Read(path string, most int64) ([]byte, error) {
	// Opening a pipe would wait for whoever writes to it, and everything else
	// with it.
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if info, err := f.Stat(); err != nil || !info.Mode().IsRegular() {
		return nil, cmp.Or(err, fmt.Errorf("%s is no plain file", path))
	}
	raw, err := io.ReadAll(io.LimitReader(f, most+1))
	if err == nil && int64(len(raw)) > most {
		err = fmt.Errorf("%s has more than %d bytes", path, most)
	}
	if err != nil {
		return nil, err
	}
	return raw, nil
}

// Tidy removes from a folder what processes that were killed in Replace left.
// What is younger than a minute may be somebody's who writes just now.
func Tidy(dir string) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return // nothing is there, or whoever writes will hear of it
	}
	for _, e := range entries {
		if !e.Type().IsRegular() || !left.MatchString(e.Name()) {
			continue
		}
		if info, err := e.Info(); err == nil && time.Since(info.ModTime()) > time.Minute {
			_ = os.Remove(filepath.Join(dir, e.Name())) // or the next time
		}
	}
}

// MkdirAll makes a folder and what is missing above it, which nobody but the
// owner can enter.
func MkdirAll(path string) error {
	if info, err := os.Stat(path); err == nil {
		if !info.IsDir() {
			return fmt.Errorf("%s is no folder", path)
		}
		return nil
	}
	parent := filepath.Dir(path)
	if parent != path {
		if err := MkdirAll(parent); err != nil {
			return err
		}
	}
	if err := os.Mkdir(path, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return SyncDir(parent)
}

// SyncDir makes the names in a folder durable.
func SyncDir(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
