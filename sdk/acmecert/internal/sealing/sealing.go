// Package sealing encrypts values so that whoever keeps them can neither read
// them nor pass one off under the name of another. It answers "may what lies
// in this place be believed"; where values lie is left to the storages.
//
// A sealed value is
//
//	"LAC1" | salt (32 bytes) | AES-256-GCM ciphertext and tag
//
// under a key derived for that value alone (HKDF-SHA-256, RFC 5869, from the
// sealing key and the salt), so that no number of values exhausts a nonce. The
// name is associated data (RFC 5116 2.1). What cannot be prevented is that an
// older value of the same name is put back.
package sealing

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
)

// KeySize is the length of a sealing key in bytes.
const KeySize = 32

const (
	magic    = "LAC1"
	saltSize = 32
	// Overhead is how many bytes longer a sealed value is.
	Overhead = len(magic) + saltSize + 16
)

// ErrRefused is in every error of Open: the value was not sealed with one of
// these keys under this name.
var ErrRefused = errors.New("not sealed with this key under this name, or altered since")

// A Sealer seals with one key and opens with that one and earlier ones.
type Sealer struct{ keys [][]byte }

// New takes the key that seals and, after a change of keys, the earlier ones
// that still open.
func New(key []byte, old ...[]byte) (*Sealer, error) {
	s := &Sealer{}
	for i, k := range append([][]byte{key}, old...) {
		if len(k) != KeySize {
			return nil, fmt.Errorf("sealing key %d has %d bytes, it must have %d: make one with: openssl rand -hex 32", i+1, len(k), KeySize)
		}
		if allEqual(k) {
			return nil, fmt.Errorf("sealing key %d is one byte repeated: make one with: openssl rand -hex 32", i+1)
		}
		s.keys = append(s.keys, append([]byte(nil), k...))
	}
	return s, nil
}

func allEqual(k []byte) bool {
	for _, b := range k {
		if b != k[0] {
			return false
		}
	}
	return true
}

func aead(key, salt []byte) (cipher.AEAD, error) {
	derived, err := hkdf.Key(sha256.New, key, salt, "legation acmecert storage v1", KeySize)
	if err != nil {
		return nil, err
	}
	block, err := aes.NewCipher(derived)
	if err != nil {
		return nil, err
	}
	return cipher.NewGCM(block)
}

// Seal returns value sealed under name.
func (s *Sealer) Seal(name string, value []byte) ([]byte, error) {
	out := make([]byte, len(magic)+saltSize, Overhead+len(value))
	copy(out, magic)
	salt := out[len(magic):]
	if _, err := rand.Read(salt); err != nil {
		return nil, err
	}
	a, err := aead(s.keys[0], salt)
	if err != nil {
		return nil, err
	}
	return a.Seal(out, make([]byte, a.NonceSize()), value, []byte(name)), nil
}

// Open returns what was sealed under name.
func (s *Sealer) Open(name string, sealed []byte) ([]byte, error) {
	if len(sealed) < Overhead || string(sealed[:len(magic)]) != magic {
		return nil, fmt.Errorf("%s: %d bytes that are no sealed value: %w", name, len(sealed), ErrRefused)
	}
	salt, box := sealed[len(magic):len(magic)+saltSize], sealed[len(magic)+saltSize:]
	for _, k := range s.keys {
		a, err := aead(k, salt)
		if err != nil {
			return nil, err
		}
		if value, err := a.Open(nil, make([]byte, a.NonceSize()), box, []byte(name)); err == nil {
			return value, nil
		}
	}
	return nil, fmt.Errorf("%s: %w", name, ErrRefused)
}

// ReadKey reads a sealing key from a file: 32 bytes as they are, or as text in
// hexadecimal or base64.
func ReadKey(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("read the sealing key: %w", err)
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, 1024))
	if err != nil {
		return nil, fmt.Errorf("read the sealing key: %w", err)
	}
	if len(b) == KeySize {
		return b, nil
	}
	text := strings.TrimSpace(string(b))
	for _, decode := range []func(string) ([]byte, error){hex.DecodeString, base64.StdEncoding.DecodeString, base64.RawStdEncoding.DecodeString, base64.RawURLEncoding.DecodeString} {
		if key, err := decode(text); err == nil && len(key) == KeySize {
			return key, nil
		}
	}
	return nil, fmt.Errorf("%s does not hold a sealing key of %d bytes (raw, hexadecimal or base64): make one with: openssl rand -hex 32", path, KeySize)
}
