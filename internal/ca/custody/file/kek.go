// Package file keeps authority keys in the store, sealed with AES-256-GCM
// under a key-encryption key that lies in a 0600 file, the same on every
// replica. Who has the store alone, or the file alone, has no key.
package file

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/legation-io/legation/internal/durable"
	"github.com/legation-io/legation/internal/fault"
)

const kekBytes = 32

// KEK is a key-encryption key. Its String is its id, never the key.
type KEK struct {
	key [kekBytes]byte
	id  string
}

// ID names the key without telling anything about it.
func (k *KEK) ID() string { return k.id }

// String is the id.
func (k *KEK) String() string { return k.id }

// Format prints the id, so that no verb prints a key.
func (k *KEK) Format(w fmt.State, _ rune) { io.WriteString(w, k.id) }

// OpenKEK reads a key-encryption key: 32 bytes in a file that only its owner
// may read. With create, an absent file is made, with random bytes, mode 0600
// before its first byte. fault.NotFound without create; fault.Invalid when
// the file has another length; fault.Denied when others may read or write it.
func OpenKEK(files durable.FS, path string, create bool) (*KEK, error) {
	data, err := files.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		if !create {
			return nil, fault.New(fault.NotFound, "no key-encryption key at %s: copy the one of another replica there (mode 0600), or name it with --kek-file", path)
		}
		if err := files.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			return nil, fmt.Errorf("make the folder of the key-encryption key: %w", err)
		}
		data = make([]byte, kekBytes)
		rand.Read(data)
		if err := files.WriteFile(path, data, 0o600); err != nil {
			return nil, fmt.Errorf("make the key-encryption key: %w", err)
		}
	} else if err != nil {
		return nil, fmt.Errorf("read the key-encryption key: %w", err)
	}
	if err := checkMode(files, path); err != nil {
		return nil, err
	}
	if len(data) != kekBytes {
		return nil, fault.New(fault.Invalid, "the key-encryption key %s has %d bytes, want %d: it is not the file that this program made, or was damaged; restore it from a backup", path, len(data), kekBytes)
	}
	k := &KEK{}
	copy(k.key[:], data)
	clear(data)
	sum := sha256.Sum256(append([]byte("legation key-encryption key id v1\x00"), k.key[:]...))
	k.id = hex.EncodeToString(sum[:8])
	return k, nil
}

// checkMode refuses a file that others may open. A file layer without modes
// (in memory) has none to check.
func checkMode(files durable.FS, path string) error {
	stat := os.Stat
	if files != durable.OS {
		s, ok := files.(interface {
			Stat(string) (fs.FileInfo, error)
		})
		if !ok {
			return nil
		}
		stat = s.Stat
	}
	info, err := stat(path)
	if err != nil {
		return fmt.Errorf("look at the key-encryption key: %w", err)
	}
	if !info.Mode().IsRegular() {
		return fault.New(fault.Invalid, "the key-encryption key %s is not a regular file", path)
	}
	if mode := info.Mode().Perm(); mode&0o077 != 0 {
		return fault.New(fault.Denied, "the key-encryption key %s has mode %04o: others may open it; if nobody did: chmod 0600 %s", path, mode, path)
	}
	return nil
}
