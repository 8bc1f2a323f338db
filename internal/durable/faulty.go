package durable

import (
	"bytes"
	"errors"
	"io/fs"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
)

// ErrCrashed is what every call returns between CrashAt's step and Restart.
var ErrCrashed = errors.New("durable: the machine has lost power")

// Faulty is a file system in memory that fails on purpose. Each of the system
// calls that OS makes is one step: WriteFile takes five (create, write, fsync,
// rename, fsync of the folder), Remove two, MkdirAll two per folder made,
// ReadFile one. It is safe for concurrent use.
type Faulty struct {
	mu      sync.Mutex // guards all below
	rng     *rand.Rand
	files   map[string]*file // as programs see them
	pending []change         // of names, not yet durable, oldest first
	disk    map[string]*file // names that survive a power cut
	steps   int
	fails   map[int]error
	crashAt int
	crashed bool
	temps   int
}

// file is a file or a folder. Both maps share it; its bytes are durable up to
// synced.
type file struct {
	data   []byte
	mode   os.FileMode
	synced bool
}

// change is a name that was given a file, or lost it (file nil).
type change struct {
	name string
	file *file
}

// NewFaulty returns an empty file system whose folder "/" exists. The seed
// decides what of the un-synced survives a power cut.
func NewFaulty(seed uint64) *Faulty {
	root := &file{mode: fs.ModeDir | 0o755, synced: true}
	return &Faulty{
		rng:   rand.New(rand.NewPCG(seed, 0)),
		files: map[string]*file{"/": root}, disk: map[string]*file{"/": root},
		fails: map[int]error{},
	}
}

// Steps returns how many steps were taken so far.
func (f *Faulty) Steps() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.steps
}

// FailAt makes the step after the next n-1 ones fail with err, e.g.
// syscall.ENOSPC, once. A write that fails leaves half of its bytes.
func (f *Faulty) FailAt(n int, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.fails[f.steps+n] = err
}

// CrashAt cuts the power at the step after the next n-1 ones.
func (f *Faulty) CrashAt(n int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.crashAt = f.steps + n
}

// Crash cuts the power now and starts anew: names that were not made durable
// by an fsync of their folder are there or not, bytes that were not fsynced
// are torn.
func (f *Faulty) Crash() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.restartLocked()
}

// Restart ends a crash of CrashAt. It does nothing when there was none.
func (f *Faulty) Restart() {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.crashed {
		f.restartLocked()
	}
}

func (f *Faulty) restartLocked() {
	for _, c := range f.pending { // a file system may write these back in any order
		if f.rng.IntN(2) == 0 {
			set(f.disk, c)
		}
	}
	f.pending = nil
	for _, file := range f.disk {
		if !file.synced {
			file.data = file.data[:f.rng.IntN(len(file.data)+1)]
			file.synced = true
		}
	}
	f.files = maps.Clone(f.disk)
	f.fails, f.crashAt, f.crashed = map[int]error{}, 0, false
}

func set(m map[string]*file, c change) {
	if c.file == nil {
		delete(m, c.name)
	} else {
		m[c.name] = c.file
	}
}

// List returns all names, temporary files too, sorted.
func (f *Faulty) List() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Sorted(maps.Keys(f.files))
}

// Mode returns the mode of a file or folder.
func (f *Faulty) Mode(path string) (os.FileMode, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if file := f.files[clean(path)]; file != nil {
		return file.mode, nil
	}
	return 0, pathError("stat", path, fs.ErrNotExist)
}

func (f *Faulty) stepLocked(op, path string) error {
	if f.crashed {
		return ErrCrashed
	}
	f.steps++
	if f.crashAt == f.steps {
		f.crashed = true
		return ErrCrashed
	}
	if err := f.fails[f.steps]; err != nil {
		delete(f.fails, f.steps)
		return pathError(op, path, err)
	}
	return nil
}

func (f *Faulty) nameLocked(c change) {
	set(f.files, c)
	f.pending = append(f.pending, c)
}

// syncDirLocked makes the names in a folder durable.
func (f *Faulty) syncDirLocked(dir string) error {
	if err := f.stepLocked("fsync", dir); err != nil {
		return err
	}
	f.pending = slices.DeleteFunc(f.pending, func(c change) bool {
		if filepath.Dir(c.name) != dir {
			return false
		}
		set(f.disk, c)
		return true
	})
	return nil
}

// ReadFile implements FS.
func (f *Faulty) ReadFile(path string) ([]byte, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.stepLocked("open", path); err != nil {
		return nil, err
	}
	file := f.files[clean(path)]
	switch {
	case file == nil:
		return nil, pathError("open", path, fs.ErrNotExist)
	case file.mode.IsDir():
		return nil, pathError("read", path, syscall.EISDIR)
	}
	return bytes.Clone(file.data), nil
}

// WriteFile implements FS.
func (f *Faulty) WriteFile(path string, data []byte, mode os.FileMode) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	path = clean(path)
	dir := filepath.Dir(path)
	if d := f.files[dir]; d == nil || !d.mode.IsDir() {
		return pathError("open", path, fs.ErrNotExist)
	}
	if err := f.stepLocked("open", path); err != nil {
		return err
	}
	f.temps++
	temp := filepath.Join(dir, strings.TrimSuffix(tempPattern(path), "*")+strconv.Itoa(f.temps))
	file := &file{mode: mode.Perm()}
	f.nameLocked(change{temp, file})
	if err := f.fillLocked(temp, path, file, data); err != nil {
		if !f.crashed {
			f.nameLocked(change{temp, nil})
		}
		return err
	}
	f.nameLocked(change{temp, nil})
	f.nameLocked(change{path, file})
	return f.syncDirLocked(dir)
}

func (f *Faulty) fillLocked(temp, path string, file *file, data []byte) error {
	if err := f.stepLocked("write", temp); err != nil {
		file.data = bytes.Clone(data[:len(data)/2])
		return err
	}
	file.data = bytes.Clone(data)
	if err := f.stepLocked("fsync", temp); err != nil {
		return err
	}
	file.synced = true
	return f.stepLocked("rename", path)
}

// MkdirAll implements FS.
func (f *Faulty) MkdirAll(path string, mode os.FileMode) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.mkdirLocked(clean(path), mode)
}

func (f *Faulty) mkdirLocked(path string, mode os.FileMode) error {
	if have := f.files[path]; have != nil {
		if !have.mode.IsDir() {
			return pathError("mkdir", path, syscall.ENOTDIR)
		}
		return nil
	}
	parent := filepath.Dir(path)
	if err := f.mkdirLocked(parent, mode); err != nil {
		return err
	}
	if err := f.stepLocked("mkdir", path); err != nil {
		return err
	}
	f.nameLocked(change{path, &file{mode: fs.ModeDir | mode.Perm(), synced: true}})
	return f.syncDirLocked(parent)
}

// Remove implements FS.
func (f *Faulty) Remove(path string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	path = clean(path)
	if err := f.stepLocked("remove", path); err != nil {
		return err
	}
	if f.files[path] == nil {
		return nil
	}
	for name := range f.files {
		if filepath.Dir(name) == path && name != path {
			return pathError("remove", path, syscall.ENOTEMPTY)
		}
	}
	f.nameLocked(change{path, nil})
	return f.syncDirLocked(filepath.Dir(path))
}

func clean(path string) string { return filepath.Clean("/" + path) }

func pathError(op, path string, err error) error {
	return &fs.PathError{Op: op, Path: path, Err: err}
}
