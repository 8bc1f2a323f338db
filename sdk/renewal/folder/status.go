package folder

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/legation-io/legation/sdk/internal/durable"
	"github.com/legation-io/legation/sdk/renewal"
)

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

// take brings the file of status up to what is declared; it reports whether
// there was anything to do.
func (f *Folder) take(ctx context.Context, k renewal.Key, c *renewal.Certificate) (bool, error) {
	unlock, err := f.lockStatus(ctx)
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

// lockPatience is how long others may write a status: one of them may have
// been stopped while it did.
const lockPatience = 30 * time.Second

var errLocked = errors.New("it is locked")

// lockStatus keeps others, in this process and in others, from writing a
// status.
func (f *Folder) lockStatus(ctx context.Context) (func(), error) {
	ctx, cancel := context.WithTimeout(ctx, lockPatience)
	defer cancel()
	path := filepath.Join(f.cfg.State, "status.lock")
	late := func() error { return fmt.Errorf("%s: %w by another process (%w)", path, errLocked, ctx.Err()) }
	select {
	case f.status <- struct{}{}:
	case <-ctx.Done():
		return nil, late()
	}
	for {
		l, err := lock(path)
		if err == nil {
			return func() { l.Close(); <-f.status }, nil
		}
		if !errors.Is(err, errLocked) {
			<-f.status
			return nil, err
		}
		select {
		case <-time.After(2 * time.Millisecond): // the system can wait, but not until a context ends
		case <-ctx.Done():
			<-f.status
			return nil, late()
		}
	}
}

func (f *Folder) readStatus(k renewal.Key) (*renewal.Certificate, error) {
	raw, err := durable.Read(f.statusFile(k), maxFile)
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

// UpdateStatus implements renewal.Store.
func (f *Folder) UpdateStatus(ctx context.Context, c *renewal.Certificate) error {
	k := c.Key()
	if !f.isDeclared(k) {
		return renewal.ErrNotFound
	}
	unlock, err := f.lockStatus(ctx)
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
	f.notify(k)
	return nil
}
