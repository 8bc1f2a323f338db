package policy

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/legation-io/legation/sdk/internal/durable"
)

// Directory is a policy in a folder: every *.rego below it but *_test.rego,
// and data.json. Names that start with a dot are left out, symbolic links to
// files are followed, so that a mounted ConfigMap works.
type Directory struct {
	// Path of the folder.
	Path string
	// Name of the policy; default is Path's last element.
	Name string
	// Query that decides; empty is DefaultQuery.
	Query string
	// RegoV0 says that the modules are written in Rego v0.
	RegoV0 bool
	// Poll is how often the folder is read even though no change was seen;
	// default 10 s.
	Poll time.Duration
}

// Load reads the folder. The Policy's version is a hash of what was read.
// Errors name the file; a folder without *.rego is one.
func (d Directory) Load() (Policy, error) {
	p := Policy{Name: d.name(), Query: d.Query, RegoV0: d.RegoV0, Modules: map[string]string{}}
	total := 0
	err := filepath.WalkDir(d.Path, func(file string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name := entry.Name()
		if file != d.Path && strings.HasPrefix(name, ".") {
			if entry.IsDir() {
				return fs.SkipDir
			}
			return nil
		}
		rel, err := filepath.Rel(d.Path, file)
		if err != nil {
			return err
		}
		rego := strings.HasSuffix(name, ".rego") && !strings.HasSuffix(name, "_test.rego")
		if entry.IsDir() || !rego && rel != "data.json" {
			return nil
		}
		if info, err := os.Stat(file); err != nil || !info.Mode().IsRegular() {
			return err
		}
		raw, err := durable.Read(file, int64(MaxBytes-total))
		if err != nil {
			return err
		}
		if total += len(raw); rel == "data.json" {
			p.Data = raw
			return nil
		}
		if len(p.Modules) == MaxModules {
			return fmt.Errorf("%s: more than %d modules", d.Path, MaxModules)
		}
		p.Modules[filepath.ToSlash(rel)] = string(raw)
		return nil
	})
	if err != nil {
		return Policy{}, err
	}
	if len(p.Modules) == 0 {
		return Policy{}, fmt.Errorf("%s holds no *.rego", d.Path)
	}
	sum := digest(p)
	p.Version = hex.EncodeToString(sum[:6])
	return p, nil
}

func (d Directory) name() string { return cmp.Or(d.Name, filepath.Base(d.Path)) }

// Run puts the folder's policy into force and follows the folder until ctx
// ends, and returns nil then. What does not load is logged and counted, and
// leaves the policy before in force.
func (d Directory) Run(ctx context.Context, e *Engine) error {
	var tried [sha256.Size]byte
	failed := ""
	follow(ctx, e.config.Logger, d.Poll, d.folders, func() {
		p, err := d.Load()
		if err != nil {
			if failed != err.Error() {
				failed = err.Error()
				e.refused("directory", Policy{Name: d.name()}, err)
			}
			return
		}
		if sum := digest(p); sum != tried || failed != "" {
			tried, failed = sum, ""
			e.Set(ctx, "directory", p) // says itself what is wrong
		}
	})
	return nil
}

// folders are what is watched: Path and the folders below.
func (d Directory) folders() []string {
	out := []string{d.Path}
	filepath.WalkDir(d.Path, func(file string, entry fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return nil
		case !entry.IsDir() || file == d.Path:
		case strings.HasPrefix(entry.Name(), "."):
			return fs.SkipDir
		case len(out) < MaxModules:
			out = append(out, file)
		}
		return nil
	})
	return out
}
