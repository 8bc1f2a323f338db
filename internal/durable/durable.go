// Package durable is the file layer: every file we write goes through it, so
// that it is whole or absent after a power cut, has its mode before its first
// byte, and can be made to fail in a test.
package durable

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// FS is where files live. Errors are those of package os.
type FS interface {
	ReadFile(path string) ([]byte, error)
	// WriteFile replaces path whole: temporary file in the same folder with
	// the mode set at creation whatever the umask, fsync, rename, fsync of
	// the folder. After an error path holds what it held before, or, when
	// only the last fsync failed, the new data not yet durable.
	WriteFile(path string, data []byte, mode os.FileMode) error
	// MkdirAll makes path and missing parents with exactly this mode. What
	// exists keeps its mode.
	MkdirAll(path string, mode os.FileMode) error
	// Remove deletes a file durably; an absent one is no error.
	Remove(path string) error
}

// OS is the machine's file system.
var OS FS = osFS{}

type osFS struct{}

func (osFS) ReadFile(path string) ([]byte, error) { return os.ReadFile(path) }

func (osFS) WriteFile(path string, data []byte, mode os.FileMode) (err error) {
	dir := filepath.Dir(path)
	f, err := os.CreateTemp(dir, tempPattern(path)) // 0600 from the start
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	defer func() {
		if err != nil {
			f.Close()
			os.Remove(f.Name())
		}
	}()
	if err := f.Chmod(mode); err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	if _, err := f.Write(data); err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	if err := f.Sync(); err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	if err := f.Close(); err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	if err := os.Rename(f.Name(), path); err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	return syncDir(dir)
}

func (o osFS) MkdirAll(path string, mode os.FileMode) error {
	if st, err := os.Stat(path); err == nil {
		if !st.IsDir() {
			return fmt.Errorf("make folder %s: a file is in its place", path)
		}
		return nil
	}
	parent := filepath.Dir(path)
	if parent != path {
		if err := o.MkdirAll(parent, mode); err != nil {
			return err
		}
	}
	if err := os.Mkdir(path, mode); err != nil {
		if errors.Is(err, fs.ErrExist) { // somebody else was faster
			return nil
		}
		return err
	}
	if err := os.Chmod(path, mode); err != nil { // the umask took bits away
		return err
	}
	return syncDir(parent)
}

func (osFS) Remove(path string) error {
	if err := os.Remove(path); err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
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

// tempPattern names the temporary file of a path: hidden, and recognised by
// isTemp.
func tempPattern(path string) string { return "." + filepath.Base(path) + ".tmp*" }

func isTemp(name string) bool { return strings.HasPrefix(name, ".") && strings.Contains(name, ".tmp") }

// Sweep removes the temporary files that WriteFile left in a folder of the
// machine when the power failed. Call it before anything writes there.
func Sweep(dir string) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	var errs []error
	for _, e := range entries {
		if e.Type().IsRegular() && isTemp(e.Name()) {
			errs = append(errs, os.Remove(filepath.Join(dir, e.Name())))
		}
	}
	return errors.Join(errs...)
}
