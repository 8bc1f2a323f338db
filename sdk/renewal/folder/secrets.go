package folder

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/legation-io/legation/sdk/internal/durable"
	"github.com/legation-io/legation/sdk/renewal"
)

// A Secret is a folder like one that Kubernetes mounts: "..data" links to the
// folder with the values, and each value is a link through it, so that all
// change at once.
const (
	dataLink = "..data"
	metaFile = "..metadata.json"
)

// meta is what of a Secret is no value.
type meta struct {
	Labels      map[string]string `json:"labels,omitempty"`
	Annotations map[string]string `json:"annotations,omitempty"`
}

func (f *Folder) secretDir(namespace, name string) string {
	return filepath.Join(f.cfg.State, "secrets", namespace, name)
}

// SecretDir is where a Secret's files are: tls.key, tls.crt, ca.crt. It may
// not be there yet.
func (f *Folder) SecretDir(namespace, name string) string { return f.secretDir(namespace, name) }

func checkName(namespace, name string) error {
	_, err := renewal.ParseKey(namespace + "/" + name)
	return err
}

// GetSecret implements renewal.Store.
func (f *Folder) GetSecret(_ context.Context, namespace, name string) (*renewal.Secret, error) {
	if err := checkName(namespace, name); err != nil {
		return nil, err
	}
	dir := f.secretDir(namespace, name)
	var err error
	for range 10 { // it may be replaced while it is read
		var link string
		if link, err = os.Readlink(filepath.Join(dir, dataLink)); errors.Is(err, fs.ErrNotExist) {
			return nil, renewal.ErrNotFound
		} else if err != nil {
			return nil, err
		}
		s := &renewal.Secret{Namespace: namespace, Name: name, Data: make(map[string][]byte)}
		err = readSecret(s, filepath.Join(dir, filepath.Base(link)))
		if now, linkErr := os.Readlink(filepath.Join(dir, dataLink)); linkErr != nil || now != link {
			continue // some of it may have been removed already
		}
		if err == nil {
			return s, nil
		}
		if !errors.Is(err, fs.ErrNotExist) {
			break
		}
	}
	err = cmp.Or(err, errors.New("it changes all the time"))
	return nil, fmt.Errorf("read secret %s/%s: %w", namespace, name, err)
}

func readSecret(s *renewal.Secret, dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		raw, err := durable.Read(filepath.Join(dir, e.Name()), maxFile)
		if err != nil {
			return err
		}
		if e.Name() != metaFile {
			s.Data[e.Name()] = raw
			continue
		}
		var m meta
		if err := json.Unmarshal(raw, &m); err != nil {
			return fmt.Errorf("%s: %w", e.Name(), err)
		}
		s.Labels, s.Annotations = m.Labels, m.Annotations
	}
	return nil
}

// PutSecret implements renewal.Store.
func (f *Folder) PutSecret(_ context.Context, s *renewal.Secret) error {
	if err := checkName(s.Namespace, s.Name); err != nil {
		return err
	}
	dir, version := f.secretDir(s.Namespace, s.Name), ".."+rand.Text()
	err := durable.MkdirAll(dir)
	if err == nil {
		err = fillVersion(filepath.Join(dir, version), s)
	}
	for name := range s.Data { // first, so that whoever finds the data finds the links
		if err == nil {
			err = link(dir, name, filepath.Join(dataLink, name))
		}
	}
	if err == nil {
		err = durable.SyncDir(dir) // what the data will link to is there before it does
	}
	if err != nil {
		os.RemoveAll(filepath.Join(dir, version))
		return fmt.Errorf("write secret %s/%s: %w", s.Namespace, s.Name, err)
	}
	if err := link(dir, dataLink, version); err != nil {
		return err
	}
	if err := durable.SyncDir(dir); err != nil {
		return err
	}
	return prune(dir, version)
}

// prune removes older versions and values that are no more. What a power cut
// brings back of them goes with the next start.
func prune(dir, version string) error {
	values, err := os.ReadDir(filepath.Join(dir, version))
	if err != nil {
		return err
	}
	keep := map[string]bool{dataLink: true, version: true}
	for _, v := range values {
		keep[v.Name()] = v.Name() != metaFile
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if keep[e.Name()] {
			continue
		}
		if err := os.RemoveAll(filepath.Join(dir, e.Name())); err != nil {
			return err
		}
	}
	return nil
}

// sweep finishes what a process that was killed had begun, so that no key stays
// that nobody knows of. Only the owner of the lock may.
func (f *Folder) sweep() {
	durable.Tidy(f.statusDir())
	root := filepath.Join(f.cfg.State, "secrets")
	secrets, err := fs.Glob(os.DirFS(root), "*/*")
	if err != nil {
		f.log.Error("cannot tidy up", "folder", root, "error", err)
	}
	abandoned := f.abandoned()
	for _, name := range secrets {
		dir := filepath.Join(root, name)
		link, err := os.Readlink(filepath.Join(dir, dataLink))
		switch {
		case errors.Is(err, fs.ErrNotExist):
			err = os.RemoveAll(dir)
		case err == nil && abandoned(name):
			err = f.DeleteSecret(context.Background(), filepath.Dir(name), filepath.Base(name))
		case err == nil:
			err = prune(dir, filepath.Base(link))
		}
		if err != nil {
			f.log.Error("cannot tidy up a secret; it is left as it is", "folder", dir, "error", err)
		}
	}
}

// abandoned tells the requests of certificates that are declared no more. It
// knows none while a file cannot be read or none is there (yet): whose request
// is lost asks again, for another certificate.
func (f *Folder) abandoned() func(secret string) bool {
	f.scanning.Lock()
	defer f.scanning.Unlock()
	known := len(f.files) > 0
	for _, file := range f.files {
		known = known && !file.bad
	}
	return func(secret string) bool {
		name, ok := strings.CutSuffix(secret, renewal.NextPrivateKeySuffix)
		k, err := renewal.ParseKey(name)
		return known && ok && err == nil && !f.isDeclared(k)
	}
}

func fillVersion(dir string, s *renewal.Secret) error {
	if err := os.Mkdir(dir, 0o700); err != nil {
		return err
	}
	m, err := json.Marshal(meta{s.Labels, s.Annotations})
	if err != nil {
		return err
	}
	if err := durable.Create(filepath.Join(dir, metaFile), m); err != nil {
		return err
	}
	for name, value := range s.Data {
		if name == "" || strings.HasPrefix(name, ".") || strings.ContainsAny(name, "/\\") {
			return fmt.Errorf("%q is no name of a value", name)
		}
		if err := durable.Create(filepath.Join(dir, name), value); err != nil {
			return err
		}
	}
	return durable.SyncDir(dir)
}

// link makes or replaces a symbolic link in one step.
func link(dir, name, target string) error {
	path := filepath.Join(dir, name)
	if have, err := os.Readlink(path); err == nil && have == target {
		return nil
	}
	aside := filepath.Join(dir, "..link-"+rand.Text())
	if err := os.Symlink(target, aside); err != nil {
		return err
	}
	if err := os.Rename(aside, path); err != nil {
		os.Remove(aside)
		return err
	}
	return nil
}

// DeleteSecret implements renewal.Store.
func (f *Folder) DeleteSecret(_ context.Context, namespace, name string) error {
	if err := checkName(namespace, name); err != nil {
		return err
	}
	dir := f.secretDir(namespace, name)
	// Half a Secret must not be taken for a whole one, after a power cut either.
	err := os.Remove(filepath.Join(dir, dataLink))
	if err == nil {
		err = durable.SyncDir(dir)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := os.RemoveAll(dir); err != nil {
		return err
	}
	if err := durable.SyncDir(filepath.Dir(dir)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}
