// Package durable is the file layer: every file we write goes through it, so
// that it is whole or absent after a power cut, has its mode before its first
// byte, and can be made to fail in a test.
package durable

import (
	"fmt"
	"os"
	"path/filepath"
)

// FS is where files live. Errors are those of package os.
type FS interface {
	ReadFile(path string) ([]byte, error)
	// WriteFile replaces path whole: temporary file in the same folder with
	// the mode set at creation whatever the umask, fsync, rename, fsync of
	// the folder.
	WriteFile(path string, data []byte, mode os.FileMode) error
	// MkdirAll makes path and missing parents with exactly this mode.
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
	f, err := os.CreateTemp(dir, "."+filepath.Base(path)+".*") // 0600 from the start
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

func (osFS) MkdirAll(path string, mode os.FileMode) error {
	if st, err := os.Stat(path); err == nil {
		if !st.IsDir() {
			return fmt.Errorf("make folder %s: a file is in its place", path)
		}
		return nil
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	if err := os.Mkdir(path, mode); err != nil && !os.IsExist(err) {
		return err
	}
	return os.Chmod(path, mode)
}

func (osFS) Remove(path string) error {
	if err := os.Remove(path); err != nil && !os.IsNotExist(err) {
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
