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
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
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
	// State is where status and Secrets go; it is made. Not within Dir.
	State string
	// Poll is how often everything is looked at, besides what the system
	// reports; 0 is 30 seconds.
	Poll time.Duration
	// Logger gets files that cannot be read; nil discards it.
	Logger *slog.Logger
}

// A Folder is a renewal.Store.
type Folder struct {
	cfg Config
	log *slog.Logger

	mu       sync.Mutex // guards what follows and, in this process, the files of status
	files    map[string]*file
	watchers map[*watcher]struct{}
}

// file is what a file was last seen to declare.
type file struct {
	hash  [32]byte // of its content, good or bad
	certs []*renewal.Certificate
}

// maxFile bounds one file.
const maxFile = 16 << 20

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
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	f := &Folder{cfg: cfg, log: cfg.Logger, files: make(map[string]*file), watchers: make(map[*watcher]struct{})}
	for _, dir := range []string{cfg.State, f.statusDir(), filepath.Join(cfg.State, "secrets")} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return nil, fmt.Errorf("folder: %w", err)
		}
		if err := os.Chmod(dir, 0o700); err != nil {
			return nil, fmt.Errorf("folder: %w", err)
		}
	}
	if _, err := f.scan(); err != nil {
		return nil, fmt.Errorf("folder: %w", err)
	}
	return f, nil
}

// Lock implements renewal.Locker. Whoever gets the lock also tidies up what a
// scheduler left that was killed.
func (f *Folder) Lock() (io.Closer, error) {
	l, err := lock(filepath.Join(f.cfg.State, "lock"), false)
	if err != nil {
		return nil, fmt.Errorf("%s: %w; is another scheduler running?", f.cfg.State, err)
	}
	f.sweep()
	return l, nil
}

func (f *Folder) statusDir() string { return filepath.Join(f.cfg.State, "status") }

func (f *Folder) statusFile(k renewal.Key) string {
	return filepath.Join(f.statusDir(), k.Namespace+"_"+k.Name+".yaml")
}

// keyOf is the certificate whose status a file holds.
func keyOf(name string) (renewal.Key, bool) {
	ns, rest, ok := strings.Cut(filepath.Base(name), "_")
	rest, isYAML := strings.CutSuffix(rest, ".yaml")
	if !ok || !isYAML {
		return renewal.Key{}, false
	}
	k, err := renewal.ParseKey(ns + "/" + rest)
	return k, err == nil
}

// scan reads what is declared and returns what changed.
func (f *Folder) scan() ([]renewal.Key, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	before, _ := f.declaredLocked()
	entries, err := os.ReadDir(f.cfg.Dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	there := make(map[string]bool, len(entries))
	for _, e := range entries {
		name := e.Name()
		if strings.HasPrefix(name, ".") || !slices.Contains([]string{".yaml", ".yml", ".json"}, filepath.Ext(name)) {
			continue
		}
		there[name] = true
		f.readLocked(name)
	}
	maps.DeleteFunc(f.files, func(name string, _ *file) bool { return !there[name] })
	after, twice := f.declaredLocked()
	for k, names := range twice {
		f.log.Error("a certificate is declared twice; the first counts", "certificate", k.String(), "files", strings.Join(names, ", "))
	}
	var changed []renewal.Key
	for k, c := range after {
		if before[k] == c {
			if _, err := os.Stat(f.statusFile(k)); err == nil {
				continue
			}
		}
		wrote, err := f.declareLocked(k, c)
		if err != nil {
			return changed, err
		}
		if wrote || before[k] == nil {
			changed = append(changed, k)
		}
	}
	for k := range before {
		if after[k] == nil {
			changed = append(changed, k)
		}
	}
	return changed, nil
}

// readLocked takes over what a file declares, unless it cannot be read.
func (f *Folder) readLocked(name string) {
	path := filepath.Join(f.cfg.Dir, name)
	raw, err := readAtMost(path, maxFile)
	if err != nil {
		if f.files[name] == nil {
			f.files[name] = &file{}
		}
		f.log.Error("a file of certificates cannot be read; what it last declared stays", "file", path, "error", err)
		return
	}
	hash := sha256.Sum256(raw)
	old := f.files[name]
	if old != nil && old.hash == hash {
		return
	}
	next := &file{hash: hash}
	if next.certs, err = renewal.ParseAll(raw); err != nil {
		f.log.Error("a file of certificates is wrong; what it last declared stays", "file", path, "error", err)
		if old != nil {
			next.certs = old.certs
		}
	}
	f.files[name] = next
}

// declaredLocked returns all certificates, and those that are declared twice.
func (f *Folder) declaredLocked() (map[renewal.Key]*renewal.Certificate, map[renewal.Key][]string) {
	out, from := make(map[renewal.Key]*renewal.Certificate), make(map[renewal.Key][]string)
	for _, name := range slices.Sorted(maps.Keys(f.files)) {
		for _, c := range f.files[name].certs {
			k := c.Key()
			if from[k] = append(from[k], name); out[k] == nil {
				out[k] = c
			}
		}
	}
	maps.DeleteFunc(from, func(_ renewal.Key, names []string) bool { return len(names) == 1 })
	return out, from
}

// declareLocked brings the file of status up to what is declared; it reports
// whether there was anything to do.
func (f *Folder) declareLocked(k renewal.Key, c *renewal.Certificate) (bool, error) {
	if _, err := renewal.ParseKey(k.String()); err != nil {
		f.log.Error("a certificate has a name that is none; it is left out", "name", k.String())
		return false, nil
	}
	unlock, err := f.lockStatus()
	if err != nil {
		return false, err
	}
	defer unlock()
	next := c.Clone()
	next.Metadata.Namespace, next.Status = k.Namespace, renewal.CertificateStatus{}
	hash := specHash(next)
	old, err := f.readStatus(k)
	if err != nil && !errors.Is(err, renewal.ErrNotFound) {
		f.log.Error("a status cannot be read; it begins anew", "certificate", k.String(), "error", err)
	}
	next.Metadata.Generation, next.Metadata.ResourceVersion = 1, "0"
	if old != nil {
		next.Status, next.Metadata.Generation, next.Metadata.ResourceVersion = old.Status, old.Metadata.Generation, old.Metadata.ResourceVersion
		if old.Metadata.Annotations[hashAnnotation] != hash {
			next.Metadata.Generation++
		}
	}
	if next.Metadata.Annotations = maps.Clone(next.Metadata.Annotations); next.Metadata.Annotations == nil {
		next.Metadata.Annotations = make(map[string]string)
	}
	next.Metadata.Annotations[hashAnnotation] = hash
	if old != nil && same(old, next) {
		return false, nil
	}
	return true, f.writeStatus(next)
}

func specHash(c *renewal.Certificate) string {
	raw, err := json.Marshal(c.Spec)
	if err != nil {
		panic(fmt.Sprintf("folder: %v", err)) // no field can fail
	}
	sum := sha256.Sum256(raw)
	return hex.EncodeToString(sum[:16])
}

func same(a, b *renewal.Certificate) bool {
	x, errX := json.Marshal(a)
	y, errY := json.Marshal(b)
	return errX == nil && errY == nil && bytes.Equal(x, y)
}

// lockStatus keeps other processes from writing a status.
func (f *Folder) lockStatus() (func(), error) {
	l, err := lock(filepath.Join(f.cfg.State, "status.lock"), true)
	if err != nil {
		return nil, err
	}
	return func() { l.Close() }, nil
}

func (f *Folder) readStatus(k renewal.Key) (*renewal.Certificate, error) {
	raw, err := readAtMost(f.statusFile(k), maxFile)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, renewal.ErrNotFound
	}
	if err != nil {
		return nil, err
	}
	c, err := renewal.Parse(raw)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", f.statusFile(k), err)
	}
	return c, nil
}

// writeStatus writes the next resource version.
func (f *Folder) writeStatus(c *renewal.Certificate) error {
	n, err := strconv.ParseInt(c.Metadata.ResourceVersion, 10, 64)
	if err != nil {
		n = time.Now().UnixNano() // somebody edited it away
	}
	c.Metadata.ResourceVersion = strconv.FormatInt(n+1, 10)
	raw, err := c.YAML()
	if err != nil {
		return err
	}
	return durable.Replace(f.statusFile(c.Key()), raw)
}

// declared reports whether a certificate is.
func (f *Folder) declared(k renewal.Key) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, file := range f.files {
		if slices.ContainsFunc(file.certs, func(c *renewal.Certificate) bool { return c.Key() == k }) {
			return true
		}
	}
	return false
}

// List implements renewal.Store.
func (f *Folder) List(context.Context) ([]renewal.Ref, error) {
	f.mu.Lock()
	all, _ := f.declaredLocked()
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
	if !f.declared(k) {
		return nil, renewal.ErrNotFound
	}
	c, err := f.readStatus(k)
	if err == nil {
		delete(c.Metadata.Annotations, hashAnnotation)
	}
	return c, err
}

// UpdateStatus implements renewal.Store.
func (f *Folder) UpdateStatus(_ context.Context, c *renewal.Certificate) error {
	k := c.Key()
	if !f.declared(k) {
		return renewal.ErrNotFound
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	unlock, err := f.lockStatus()
	if err != nil {
		return err
	}
	defer unlock()
	now, err := f.readStatus(k)
	if err != nil {
		return err
	}
	if now.Metadata.ResourceVersion != c.Metadata.ResourceVersion {
		return renewal.ErrConflict
	}
	now.Status = c.Clone().Status
	if err := f.writeStatus(now); err != nil {
		return err
	}
	c.Metadata.ResourceVersion = now.Metadata.ResourceVersion
	f.notifyLocked(k)
	return nil
}

var (
	_ renewal.Store  = (*Folder)(nil)
	_ renewal.Locker = (*Folder)(nil)
)
