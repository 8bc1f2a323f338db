// Package sealed keeps small secrets on disk: a box whose files are encrypted
// with AES-256-GCM under a key that lies in a 0600 file beside them.
//
// Against whom the seal protects: readers of a backup, a copied folder or a
// thrown-away disk that came without the key file, and anyone who changes,
// swaps or cuts a file. It does not protect against root on this machine, nor
// against a copy of the whole folder: the key is in it. It does not notice an
// older copy of the same file being put back; what is read carries dates and
// is checked by whoever reads it.
package sealed

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"strings"

	"github.com/legation-io/legation/internal/durable"
	"github.com/legation-io/legation/internal/fault"
	"github.com/legation-io/legation/sdk/secretmem"
)

const (
	// KeyFile is the name of the key's file in the box's folder.
	KeyFile = "seal.key"
	suffix  = ".sealed"

	// A sealed file: magic, version, the first bytes of the key's SHA-256,
	// nonce, ciphertext with tag. Everything before the ciphertext, and the
	// name, is authenticated.
	magic     = "LGNBOX"
	version   = 1
	idSize    = 8
	nonceSize = 12
	head      = len(magic) + 1 + idSize
)

// Box is a folder of sealed files. It is safe for concurrent use.
type Box struct {
	fs   durable.FS
	dir  string
	id   [idSize]byte
	aead cipher.AEAD
}

// Open opens the box in a folder, made with mode 0700 if absent; so is its
// key, with mode 0600. fault.Invalid when the key file is not a key.
func Open(files durable.FS, dir string) (*Box, error) {
	if err := files.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("make the folder of the sealed cache: %w", err)
	}
	path := filepath.Join(dir, KeyFile)
	raw, err := files.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		raw = make([]byte, 32)
		rand.Read(raw) // never fails (crypto/rand)
		err = files.WriteFile(path, raw, 0o600)
	}
	if err != nil {
		return nil, fmt.Errorf("open the key of the sealed cache: %w", err)
	}
	if len(raw) != 32 {
		return nil, fault.New(fault.Invalid, "%s has %d bytes and is not a key of 32; remove it to start with an empty cache", path, len(raw))
	}
	key, err := secretmem.From(raw)
	if err != nil {
		return nil, err
	}
	defer key.Close() // the cipher holds its expanded key
	block, err := aes.NewCipher(key.Bytes())
	if err != nil {
		return nil, err
	}
	aead, err := cipher.NewGCM(block)
	if err != nil {
		return nil, err
	}
	sum := sha256.Sum256(key.Bytes())
	return &Box{fs: files, dir: dir, id: [idSize]byte(sum[:idSize]), aead: aead}, nil
}

// Write replaces the file of a name, durably.
func (b *Box) Write(name string, plain []byte) error {
	path, err := b.path(name)
	if err != nil {
		return err
	}
	return b.fs.WriteFile(path, b.Seal(name, plain), 0o600)
}

// Read returns what was last written under a name; fault.NotFound when
// nothing was, fault.Invalid when it is damaged or another key sealed it.
func (b *Box) Read(name string) ([]byte, error) {
	path, err := b.path(name)
	if err != nil {
		return nil, err
	}
	raw, err := b.fs.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fault.New(fault.NotFound, "nothing is sealed under %q", name)
	}
	if err != nil {
		return nil, fmt.Errorf("read the sealed %s: %w", name, err)
	}
	return b.Unseal(name, raw)
}

// Remove deletes the file of a name; an absent one is no error.
func (b *Box) Remove(name string) error {
	path, err := b.path(name)
	if err != nil {
		return err
	}
	return b.fs.Remove(path)
}

func (b *Box) path(name string) (string, error) {
	if name == "" || strings.ContainsAny(name, "/\x00") || name[0] == '.' {
		return "", fault.New(fault.Invalid, "%q cannot name a sealed file", name)
	}
	return filepath.Join(b.dir, name+suffix), nil
}

// Seal encrypts; the result opens only under the same name with the same key.
func (b *Box) Seal(name string, plain []byte) []byte {
	out := make([]byte, 0, head+nonceSize+len(plain)+b.aead.Overhead())
	out = append(out, magic...)
	out = append(out, version)
	out = append(out, b.id[:]...)
	nonce := make([]byte, nonceSize)
	rand.Read(nonce)
	out = append(out, nonce...)
	return b.aead.Seal(out, nonce, plain, b.aad(out[:head], name))
}

// Unseal is the inverse of Seal; every error is fault.Invalid.
func (b *Box) Unseal(name string, raw []byte) ([]byte, error) {
	if len(raw) < head+nonceSize || string(raw[:len(magic)]) != magic {
		return nil, fault.New(fault.Invalid, "%s is not a sealed file", name)
	}
	if v := raw[len(magic)]; v != version {
		return nil, fault.New(fault.Invalid, "%s is sealed in version %d and this program reads version %d", name, v, version)
	}
	if [idSize]byte(raw[len(magic)+1:head]) != b.id {
		return nil, fault.New(fault.Invalid, "%s was sealed with another key than %s", name, filepath.Join(b.dir, KeyFile))
	}
	nonce := raw[head : head+nonceSize]
	plain, err := b.aead.Open(nil, nonce, raw[head+nonceSize:], b.aad(raw[:head], name))
	if err != nil {
		return nil, fault.New(fault.Invalid, "%s is damaged, or was sealed under another name", name)
	}
	return plain, nil
}

func (b *Box) aad(header []byte, name string) []byte {
	return append(append(make([]byte, 0, len(header)+len(name)), header...), name...)
}
