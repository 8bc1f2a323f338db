package acmecert

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/caddyserver/certmagic"

	"github.com/legation-io/legation/sdk/acmecert/internal/keys"
	"github.com/legation-io/legation/sdk/acmecert/internal/sealing"
	"github.com/legation-io/legation/sdk/internal/durable"
)

// FolderConfig says where an encrypted folder is and what opens it.
type FolderConfig struct {
	// Path is the folder, made with mode 0700 when it is missing. One that
	// others may enter is refused. Required.
	Path string
	// Key seals every file: 32 bytes; or KeyFile holds them, raw, hexadecimal
	// or base64. One of the two is required. Keep it elsewhere than the folder.
	Key     []byte
	KeyFile string
	// OldKeys still open what was sealed before Key was changed. What is
	// written again is sealed with Key.
	OldKeys [][]byte
}

// Folder is a Storage of files that are encrypted with AES-256-GCM, each bound
// to its name. Names are left readable: domains are public in transparency
// logs, and an operator can see what is there. Processes of one machine may
// share it: locks are the kernel's (flock) and end with the process. Files are
// 0600 and folders 0700 under any umask, written to disk before they appear.
type Folder struct {
	root   string
	sealer *sealing.Sealer

	mu   sync.Mutex
	held map[string]*os.File // locks that are held through this Folder, by path
}

const (
	maxFile  = 1 << 20
	lockPoll = 100 * time.Millisecond
	values   = "values"
	locks    = "locks"
	// How old a half-written file is when nobody can be writing it any more.
	abandoned = time.Hour
)

// OpenFolder opens or makes a folder.
func OpenFolder(c FolderConfig) (*Folder, error) {
	if c.Path == "" {
		return nil, errors.New("acmecert: FolderConfig.Path is not set")
	}
	if (c.Key == nil) == (c.KeyFile == "") {
		return nil, errors.New("acmecert: FolderConfig needs Key or KeyFile, one of them: the folder holds private keys")
	}
	key := c.Key
	if c.KeyFile != "" {
		var err error
		if key, err = sealing.ReadKey(c.KeyFile); err != nil {
			return nil, fmt.Errorf("acmecert: %w", err)
		}
	}
	sealer, err := sealing.New(key, c.OldKeys...)
	if err != nil {
		return nil, fmt.Errorf("acmecert: %w", err)
	}
	root, err := filepath.Abs(c.Path)
	if err != nil {
		return nil, err
	}
	f := &Folder{root: root, sealer: sealer, held: map[string]*os.File{}}
	if err := os.MkdirAll(filepath.Dir(root), 0o700); err != nil {
		return nil, fmt.Errorf("acmecert: %w", err)
	}
	for _, dir := range []string{root, filepath.Join(root, values), filepath.Join(root, locks)} {
		if err := private(dir); err != nil {
			return nil, fmt.Errorf("acmecert: %w", err)
		}
	}
	if err := f.tidy(); err != nil {
		return nil, fmt.Errorf("acmecert: %w", err)
	}
	return f, nil
}

// tidy removes what killed processes were writing. What is young may be in
// another's hands now.
func (f *Folder) tidy() error {
	return filepath.WalkDir(filepath.Join(f.root, values), func(path string, entry fs.DirEntry, err error) error {
		if err == nil && !entry.IsDir() && strings.HasPrefix(entry.Name(), ".new-") && !strings.HasSuffix(path, fileSuffix) {
			var info fs.FileInfo
			if info, err = entry.Info(); err == nil && time.Since(info.ModTime()) > abandoned {
				err = os.Remove(path)
			}
		}
		if errors.Is(err, fs.ErrNotExist) {
			return nil // another was quicker
		}
		return err
	})
}

// private makes a folder that nobody else may enter, or refuses one that is
// there and others may.
func private(dir string) error {
	err := os.Mkdir(dir, 0o700)
	if err == nil {
		err = durable.SyncDir(filepath.Dir(dir))
	}
	if err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	info, err := os.Lstat(dir)
	if err != nil {
		return err
	}
	if !info.IsDir() {
		return fmt.Errorf("%s is no folder", dir)
	}
	if err := durable.Owned(dir); err != nil {
		return err
	}
	if info.Mode().Perm()&0o077 != 0 {
		return fmt.Errorf("%s has mode %04o, others may enter it: chmod 700 it, or name a folder below it", dir, info.Mode().Perm())
	}
	return nil
}

func (f *Folder) path(name string) (string, error) {
	if err := keys.Valid(name); err != nil {
		return "", err
	}
	return filepath.Join(f.root, values, filepath.FromSlash(name)), nil
}

// Files end so, that a value may lie beside values below it.
const fileSuffix = "~"

// Store implements Storage.
func (f *Folder) Store(ctx context.Context, key string, value []byte) error {
	path, err := f.path(key)
	if err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	if len(value) > maxFile {
		return fmt.Errorf("store %s: %d bytes are more than %d", key, len(value), maxFile)
	}
	sealed, err := f.sealer.Seal(key, value)
	if err != nil {
		return fmt.Errorf("store %s: %w", key, err)
	}
	if err := f.makeFolders(filepath.Dir(path)); err != nil {
		return fmt.Errorf("store %s: %w", key, err)
	}
	if err := durable.Replace(path+fileSuffix, sealed); err != nil {
		return fmt.Errorf("store %s: %w", key, err)
	}
	return nil
}

// makeFolders makes what is missing between the root and dir.
func (f *Folder) makeFolders(dir string) error {
	if dir == filepath.Join(f.root, values) {
		return nil
	}
	if err := f.makeFolders(filepath.Dir(dir)); err != nil {
		return err
	}
	err := os.Mkdir(dir, 0o700)
	if errors.Is(err, fs.ErrExist) {
		return nil
	}
	if err != nil {
		return err
	}
	return durable.SyncDir(filepath.Dir(dir))
}

// Load implements Storage.
func (f *Folder) Load(ctx context.Context, key string) ([]byte, error) {
	path, err := f.path(key)
	if err != nil {
		return nil, err
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	file, err := os.Open(path + fileSuffix)
	if err != nil {
		return nil, fmt.Errorf("load %s: %w", key, err)
	}
	defer file.Close()
	sealed, err := io.ReadAll(io.LimitReader(file, int64(maxFile+sealing.Overhead+1)))
	if err != nil {
		return nil, fmt.Errorf("load %s: %w", key, err)
	}
	if len(sealed) > maxFile+sealing.Overhead {
		return nil, fmt.Errorf("load %s: the file is longer than any that was stored", key)
	}
	value, err := f.sealer.Open(key, sealed)
	if err != nil {
		return nil, fmt.Errorf("load from %s: %w; if the sealing key was changed, put the earlier one into OldKeys", f.root, err)
	}
	return value, nil
}

// Delete implements Storage: key, and everything below it.
func (f *Folder) Delete(_ context.Context, key string) error {
	path, err := f.path(key)
	if err != nil {
		return err
	}
	if err := os.Remove(path + fileSuffix); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("delete %s: %w", key, err)
	}
	if err := os.RemoveAll(path); err != nil {
		return fmt.Errorf("delete %s: %w", key, err)
	}
	err = durable.SyncDir(filepath.Dir(path))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// Exists implements Storage.
func (f *Folder) Exists(ctx context.Context, key string) bool {
	_, err := f.Stat(ctx, key)
	return err == nil
}

// Stat implements Storage. Size is that of the sealed value.
func (f *Folder) Stat(_ context.Context, key string) (certmagic.KeyInfo, error) {
	path, err := f.path(key)
	if err != nil {
		return certmagic.KeyInfo{}, err
	}
	if info, err := os.Stat(path + fileSuffix); err == nil {
		return certmagic.KeyInfo{Key: key, Modified: info.ModTime(), Size: info.Size(), IsTerminal: true}, nil
	}
	info, err := os.Stat(path)
	if err != nil {
		return certmagic.KeyInfo{}, err
	}
	return certmagic.KeyInfo{Key: key, Modified: info.ModTime()}, nil
}

// List implements Storage.
func (f *Folder) List(ctx context.Context, path string, recursive bool) ([]string, error) {
	var found []string
	root := filepath.Join(f.root, values)
	err := filepath.WalkDir(root, func(at string, entry fs.DirEntry, err error) error {
		if err != nil || ctx.Err() != nil {
			return errors.Join(err, ctx.Err())
		}
		name, ok := strings.CutSuffix(at, fileSuffix)
		if !ok || entry.IsDir() {
			return nil // a folder, or a file that was being written in a crash
		}
		relative, err := filepath.Rel(root, name)
		if err == nil {
			found = append(found, filepath.ToSlash(relative))
		}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("list %s: %w", path, err)
	}
	return keys.Under(found, path, recursive)
}
