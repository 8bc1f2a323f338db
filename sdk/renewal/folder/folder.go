// Package folder keeps certificates for sdk/renewal on a disk: they are
// declared in a folder of YAML files, which is only read, and status, keys and
// certificates are kept in another. When is renewed, and by whom, is the work
// of sdk/renewal; serving what is in the files that of sdk/certfile.
//
// Declared are the documents of all files in Config.Dir whose names end in
// .yaml, .yml or .json and do not begin with a dot. A file that cannot be read
// keeps what it last declared, and is logged. Changes are noticed at once
// where the system tells of them (also those of Kubernetes' mounted
// ConfigMaps), else within Config.Poll.
//
// Below Config.State, which nobody but the owner can enter:
//
//	status/NAMESPACE_NAME.yaml    the certificate with its status, like kubectl get -o yaml
//	secrets/NAMESPACE/NAME/       tls.key, tls.crt, ca.crt: links that change together
//
// Every file is written aside, synced and renamed, so that a power failure
// leaves the old or the new. One scheduler at a time has the lock; other
// processes may read, and write a status with renewal.Trigger.
package folder

import (
	"cmp"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/legation-io/legation/sdk/internal/durable"
	"github.com/legation-io/legation/sdk/renewal"
)

// Config is what Open needs.
type Config struct {
	// Dir holds the declared certificates. It need not be there yet.
	Dir string
	// State is where status and Secrets go; it is made. One of another user is
	// refused. Not within Dir.
	State string
	// Poll is how often everything is looked at, besides what the system
	// reports; 0 is 30 seconds.
	Poll time.Duration
	// Logger gets files that cannot be read; nil is slog.Default().
	Logger *slog.Logger
}

// A Folder is a renewal.Store.
type Folder struct {
	cfg Config
	log *slog.Logger

	status chan struct{} // full while somebody in this process writes a status

	scanning sync.Mutex // one scan at a time; guards what follows
	files    map[string]*file
	taken    map[renewal.Key]*renewal.Certificate // what of declared is in status

	mu       sync.Mutex // guards what follows; never held while a file is read or written
	declared map[renewal.Key]*renewal.Certificate
	watchers map[*watcher]struct{}
}

// file is what a file declares.
type file struct {
	hash  [32]byte // of its content, good or bad
	bad   bool     // certs are what it was last seen to declare, if it was
	certs []*renewal.Certificate
}

// maxFile bounds one file, and maxName its name, as file systems do.
const (
	maxFile = 16 << 20
	maxName = 255
)

// hashAnnotation, on what lies in status, tells whether the spec changed.
const hashAnnotation = "renewal.legation.io/spec-hash"

// Open reads what is declared. Files that cannot be read are logged; the
// error is of the folders.
func Open(cfg Config) (*Folder, error) {
	if cfg.Dir == "" || cfg.State == "" {
		return nil, errors.New("folder: Config.Dir and Config.State are needed")
	}
	cfg.Poll = cmp.Or(max(0, cfg.Poll), 30*time.Second)
	if cfg.Logger == nil {
		cfg.Logger = slog.Default()
	}
	f := &Folder{
		cfg: cfg, log: cfg.Logger, status: make(chan struct{}, 1),
		taken: make(map[renewal.Key]*renewal.Certificate), watchers: make(map[*watcher]struct{}),
	}
	for _, dir := range []string{cfg.State, f.statusDir(), filepath.Join(cfg.State, "secrets")} {
		if err := durable.MkdirAll(dir); err != nil {
			return nil, fmt.Errorf("folder: %w", err)
		}
		if err := durable.Owned(dir); err != nil {
			return nil, fmt.Errorf("folder: %w", err)
		}
		if err := os.Chmod(dir, 0o700); err != nil {
			return nil, fmt.Errorf("folder: %w", err)
		}
	}
	if _, err := f.scan(context.Background()); err != nil {
		return nil, fmt.Errorf("folder: %w", err)
	}
	return f, nil
}

// Lock implements renewal.Locker. Whoever gets the lock also tidies up what a
// scheduler left that was killed.
func (f *Folder) Lock() (io.Closer, error) {
	l, err := lock(filepath.Join(f.cfg.State, "lock"))
	if err != nil {
		return nil, fmt.Errorf("%s: %w; is another scheduler running?", f.cfg.State, err)
	}
	f.sweep()
	return l, nil
}

// scan reads what is declared and returns what changed.
func (f *Folder) scan(ctx context.Context) ([]renewal.Key, error) {
	f.scanning.Lock()
	defer f.scanning.Unlock()
	entries, err := os.ReadDir(f.cfg.Dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	files := make(map[string]*file, len(entries))
	for _, e := range entries {
		name := e.Name()
		if strings.HasPrefix(name, ".") || !slices.Contains([]string{".yaml", ".yml", ".json"}, filepath.Ext(name)) {
			continue
		}
		files[name] = f.read(name, f.files[name])
	}
	f.files = files
	declared := f.merge()
	f.mu.Lock()
	f.declared = declared
	f.mu.Unlock()
	var changed []renewal.Key
	for k, c := range declared {
		before := f.taken[k]
		if before == c {
			if _, err := os.Stat(f.statusFile(k)); err == nil {
				continue
			}
		}
		wrote, err := f.take(ctx, k, c)
		if errors.Is(err, errLocked) || ctx.Err() != nil {
			return changed, err
		}
		if err != nil {
			f.log.Error("what is declared cannot be taken over; trying again with the next look", "certificate", k.String(), "error", err)
			continue
		}
		if f.taken[k] = c; wrote || before == nil {
			changed = append(changed, k)
		}
	}
	for k := range f.taken {
		if declared[k] == nil {
			delete(f.taken, k)
			changed = append(changed, k)
		}
	}
	return changed, nil
}

// read returns what a file declares: what it did before when it cannot be read.
func (f *Folder) read(name string, before *file) *file {
	if before == nil {
		before = &file{}
	}
	path := filepath.Join(f.cfg.Dir, name)
	raw, err := durable.Read(path, maxFile)
	if err != nil {
		f.log.Error("a file of certificates cannot be read; what it last declared stays", "file", path, "error", err)
		return &file{bad: true, certs: before.certs}
	}
	next := &file{hash: sha256.Sum256(raw)}
	if before.hash == next.hash {
		return before
	}
	if next.certs, err = renewal.ParseAll(raw); err != nil {
		f.log.Error("a file of certificates is wrong; what it last declared stays", "file", path, "error", err)
		next.bad, next.certs = true, before.certs
		return next
	}
	next.certs = slices.DeleteFunc(next.certs, func(c *renewal.Certificate) bool {
		_, err := renewal.ParseKey(c.Key().String())
		if name := filepath.Base(f.statusFile(c.Key())); err == nil && len(name) > maxName {
			err = fmt.Errorf("%d characters of namespace and name are too many for a file's name", len(name))
		}
		if err != nil {
			f.log.Error("a certificate has a name under which it cannot be kept; it is left out", "file", path, "certificate", c.Key().String(), "error", err)
		}
		return err != nil
	})
	return next
}

// merge returns what all files declare.
func (f *Folder) merge() map[renewal.Key]*renewal.Certificate {
	out, from := make(map[renewal.Key]*renewal.Certificate), make(map[renewal.Key][]string)
	for _, name := range slices.Sorted(maps.Keys(f.files)) {
		for _, c := range f.files[name].certs {
			k := c.Key()
			if from[k] = append(from[k], name); out[k] == nil {
				out[k] = c
			}
		}
	}
	for k, names := range from {
		if len(names) > 1 {
			f.log.Error("a certificate is declared twice; the first counts", "certificate", k.String(), "files", strings.Join(names, ", "))
		}
	}
	return out
}

// isDeclared reports whether a certificate is.
func (f *Folder) isDeclared(k renewal.Key) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.declared[k] != nil
}

// List implements renewal.Store.
func (f *Folder) List(context.Context) ([]renewal.Ref, error) {
	f.mu.Lock()
	all := f.declared // replaced as a whole
	f.mu.Unlock()
	out := make([]renewal.Ref, 0, len(all))
	for k, c := range all {
		info, err := os.Stat(f.statusFile(k))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		link, err := os.Readlink(filepath.Join(f.secretDir(k.Namespace, c.Spec.SecretName), dataLink))
		if err != nil {
			link = ""
		}
		out = append(out, renewal.Ref{Key: k, Version: fmt.Sprintf("%d.%d.%s", info.ModTime().UnixNano(), info.Size(), link)})
	}
	return out, nil
}

// Get implements renewal.Store.
func (f *Folder) Get(_ context.Context, k renewal.Key) (*renewal.Certificate, error) {
	if !f.isDeclared(k) {
		return nil, renewal.ErrNotFound
	}
	c, err := f.readStatus(k)
	if err == nil {
		delete(c.Metadata.Annotations, hashAnnotation)
	}
	return c, err
}

var (
	_ renewal.Store  = (*Folder)(nil)
	_ renewal.Locker = (*Folder)(nil)
)
