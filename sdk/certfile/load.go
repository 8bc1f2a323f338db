package certfile

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"syscall"

	"github.com/legation-io/legation/sdk/secretmem"
)

type digest [sha256.Size]byte

// A set is the bytes of all files at one moment.
type set struct {
	config  *Config
	content map[string]*secretmem.Buffer
	sum     digest
}

func (s *set) wipe() {
	for _, b := range s.content {
		if b != nil {
			_ = b.Close() // the memory is wiped before anything can fail
		}
	}
}

func (s *set) bytes(path string) []byte {
	if b := s.content[path]; b != nil {
		return b.Bytes()
	}
	return nil
}

// settles is how often files that change while they are read are read again.
const settles = 5

// load reads all files until none changed meanwhile: a swap of the folder
// between two of them would give the certificate of one and the key of another.
// In the instant of a swap a file may even seem not to be there.
func (s *Source) load() (*set, error) {
	var err error
	for range settles {
		var read *set
		if read, err = s.readAll(s.config.files()); err == nil {
			return read, nil
		}
		if !errors.Is(err, errChanged) && !errors.Is(err, fs.ErrNotExist) {
			break
		}
	}
	return nil, err
}

// readAll is errChanged when what it read may not belong together.
func (s *Source) readAll(paths []string) (_ *set, err error) {
	before, err := stamps(paths)
	if err != nil {
		return nil, err
	}
	read := &set{config: &s.config, content: make(map[string]*secretmem.Buffer, len(paths))}
	defer func() {
		if err != nil {
			read.wipe()
		}
	}()
	sum := sha256.New()
	for _, path := range paths {
		if read.content[path], err = s.read(path); err != nil {
			return nil, err
		}
		inner := sha256.Sum256(read.bytes(path))
		sum.Write(inner[:])
	}
	sum.Sum(read.sum[:0])
	after, err := stamps(paths)
	if err != nil {
		return nil, err
	}
	if !same(before, after) {
		return nil, fmt.Errorf("the files of %s %w", s.config.name(), errChanged)
	}
	return read, nil
}

// stamps is what tells that a file was replaced or written.
func stamps(paths []string) ([]fs.FileInfo, error) {
	all := make([]fs.FileInfo, len(paths))
	for n, path := range paths {
		info, err := os.Stat(path)
		if err != nil {
			return nil, explain(path, err)
		}
		all[n] = info
	}
	return all, nil
}

func same(a, b []fs.FileInfo) bool {
	for n := range a {
		if !os.SameFile(a[n], b[n]) || a[n].Size() != b[n].Size() || !a[n].ModTime().Equal(b[n].ModTime()) {
			return false
		}
	}
	return true
}

// read returns the bytes of a regular file in locked memory.
func (s *Source) read(path string) (*secretmem.Buffer, error) {
	// Opening a pipe would wait for whoever writes to it.
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, explain(path, err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("%s is not a file", path)
	}
	if info.Size() > s.config.MaxSize {
		return nil, fmt.Errorf("%s has %d bytes, at most %d are read (Config.MaxSize)", path, info.Size(), s.config.MaxSize)
	}
	if info.Size() == 0 {
		return nil, fmt.Errorf("%s is empty: half written?", path)
	}
	if path == s.config.Key {
		s.checkMode(path, info)
	}
	buffer, err := secretmem.New(int(info.Size()))
	if err != nil {
		return nil, err
	}
	if _, err := io.ReadFull(f, buffer.Bytes()); err != nil {
		buffer.Close()
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			return nil, fmt.Errorf("%s %w: it shrank while it was read", path, errChanged)
		}
		return nil, explain(path, err)
	}
	return buffer, nil
}

// errChanged is about files that are written just now.
var errChanged = errors.New("changed all the time")

// checkMode warns, once per mode: refusing would break what works, and
// Kubernetes' default for secrets is 0644.
func (s *Source) checkMode(path string, info fs.FileInfo) {
	mode := info.Mode().Perm()
	if mode&0o007 == 0 {
		delete(s.warned, path)
		return
	}
	if s.warned[path] == mode {
		return
	}
	s.warned[path] = mode
	s.config.Logger.Warn("everybody on this machine may read the private key; chmod 0600, or defaultMode: 0400 in a Kubernetes volume",
		"file", path, "mode", fmt.Sprintf("%04o", mode))
}

// explain gives the errors of the file system their remedy.
func explain(path string, err error) error {
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("%s does not exist: %w", path, err)
	case errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("%s may not be read by uid %d; change its owner or mode, or those of its folders: %w", path, os.Getuid(), err)
	default:
		return err
	}
}
