package policy

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"path"
	"slices"
	"strconv"
	"strings"

	"github.com/open-policy-agent/opa/v1/util"
)

// Bounds of a bundle.
const (
	MaxBundleBytes = 8 << 20 // compressed
	maxBundleFiles = 1024
)

// A Bundle is a policy out of an OPA bundle whose signature held.
type Bundle struct {
	Policy
	// Revision is the manifest's, a decimal number: the higher is the newer.
	Revision uint64
	// KeyID names the key that signed it.
	KeyID string
}

// ReadBundle reads an OPA bundle (tar.gz; openpolicyagent.org, "Bundle File
// Format") and verifies its signature by keys; an unsigned bundle is refused,
// as is one without a key to verify it. What a bundle may hold: *.rego
// (*_test.rego are left out), data.json in any folder, .manifest with a
// decimal revision, and .signatures.json, which must list every other file.
// Wasm, plans, deltas and YAML are refused. One bundle is one policy: roots
// are not looked at. rego_version and file_rego_versions are obeyed; without
// them it is v1.
func ReadBundle(raw []byte, keys []Key, scope string) (*Bundle, error) {
	if len(raw) > MaxBundleBytes {
		return nil, fmt.Errorf("the bundle has %d bytes; at most %d", len(raw), MaxBundleBytes)
	}
	files, err := untar(raw)
	if err != nil {
		return nil, err
	}
	values, err := structured(files)
	if err != nil {
		return nil, err
	}
	keyID, err := verifyBundle(files, values, keys, scope)
	if err != nil {
		return nil, err
	}
	b := &Bundle{KeyID: keyID}
	b.Modules, b.ModuleRegoV0 = map[string]string{}, map[string]bool{}
	if err := b.manifest(files, values); err != nil {
		return nil, err
	}
	b.Version = strconv.FormatUint(b.Revision, 10)
	data := map[string]any{}
	for _, name := range slices.Sorted(maps.Keys(files)) {
		switch base := path.Base(name); {
		case strings.HasSuffix(base, "_test.rego"):
		case strings.HasSuffix(base, ".rego"):
			b.Modules[name] = string(files[name])
		case base == dataFile:
			if err := graft(data, path.Dir(name), values[name]); err != nil {
				return nil, fmt.Errorf("%s: %w", name, err)
			}
		}
	}
	if b.Data, err = json.Marshal(data); err != nil {
		return nil, fmt.Errorf("the bundle's data: %w", err)
	}
	return b, nil
}

const (
	dataFile       = "data.json"
	manifestFile   = ".manifest"
	signaturesFile = ".signatures.json"
)

// untar reads every file, refusing what two readers could take for different
// things: a name twice, names that are not clean, anything but files.
func untar(raw []byte) (map[string][]byte, error) {
	compressed := bytes.NewReader(raw)
	z, err := gzip.NewReader(compressed)
	if err != nil {
		return nil, fmt.Errorf("the bundle is not gzip: %w", err)
	}
	z.Multistream(false)
	files := map[string][]byte{}
	left := int64(MaxBytes + 1<<20)
	archive := tar.NewReader(z)
	for n := 0; ; n++ {
		header, err := archive.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, fmt.Errorf("the bundle is not tar: %w", err)
		}
		if n == maxBundleFiles {
			return nil, fmt.Errorf("the bundle has more than %d files", maxBundleFiles)
		}
		if header.Typeflag == tar.TypeDir {
			continue
		}
		name := strings.TrimPrefix(strings.TrimPrefix(header.Name, "."), "/")
		if strings.HasPrefix(header.Name, ".") && !strings.HasPrefix(header.Name, "./") {
			name = header.Name
		}
		switch base := path.Base(name); {
		case header.Typeflag != tar.TypeReg:
			return nil, fmt.Errorf("%q is no plain file", header.Name)
		case len(name) > maxNameBytes || name == "" || path.Clean("/"+name) != "/"+name || strings.ContainsAny(name, "\\\x00"):
			return nil, fmt.Errorf("%q is no plain name", header.Name)
		case base != dataFile && name != manifestFile && name != signaturesFile && !strings.HasSuffix(base, ".rego"):
			return nil, fmt.Errorf("%q: a bundle holds *.rego, data.json, .manifest and .signatures.json; pack without it", header.Name)
		}
		if _, twice := files[name]; twice {
			return nil, fmt.Errorf("%q is there twice", name)
		}
		content, err := io.ReadAll(io.LimitReader(archive, left+1))
		if err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		if left -= int64(len(content)); left < 0 {
			return nil, fmt.Errorf("the bundle unpacks to more than %d bytes", MaxBytes+1<<20)
		}
		files[name] = content
	}
	// What follows the archive is not covered by any signature.
	if rest, err := io.ReadAll(io.LimitReader(z, 1<<20)); err != nil || len(bytes.Trim(rest, "\x00")) > 0 || compressed.Len() > 0 {
		return nil, fmt.Errorf("something follows the bundle's last file (%v)", err)
	}
	return files, nil
}

// structured parses the JSON files once: what is hashed is what is used.
func structured(files map[string][]byte) (map[string]any, error) {
	values := map[string]any{}
	for name, raw := range files {
		if base := path.Base(name); base != dataFile && name != manifestFile {
			continue
		}
		if line, what := tooDeep(string(raw)); what != "" {
			return nil, fmt.Errorf("%s:%d: %s", name, line, what)
		}
		var v any
		if err := util.UnmarshalJSON(raw, &v); err != nil {
			return nil, fmt.Errorf("%s: not JSON: %w", name, err)
		}
		values[name] = v
	}
	return values, nil
}

// manifest reads what the signature covers, the value: in the text a field
// may be there twice, and readers differ in what they make of that.
func (b *Bundle) manifest(files map[string][]byte, values map[string]any) error {
	value, ok := values[manifestFile]
	if !ok {
		return fmt.Errorf("the bundle has no %s, so no revision", manifestFile)
	}
	raw, err := json.Marshal(value)
	if err != nil {
		return fmt.Errorf("%s: %w", manifestFile, err)
	}
	var m struct {
		Revision     string           `json:"revision"`
		Roots        []string         `json:"roots"`
		RegoVersion  *int             `json:"rego_version"`
		FileVersions map[string]int   `json:"file_rego_versions"`
		Wasm         []map[string]any `json:"wasm"`
		Metadata     map[string]any   `json:"metadata"`
	}
	d := json.NewDecoder(bytes.NewReader(raw))
	d.DisallowUnknownFields()
	if err := d.Decode(&m); err != nil {
		return fmt.Errorf("%s: %w", manifestFile, err)
	}
	if len(m.Wasm) > 0 {
		return fmt.Errorf("%s: wasm is not run here", manifestFile)
	}
	n, err := strconv.ParseUint(m.Revision, 10, 64)
	if err != nil || strconv.FormatUint(n, 10) != m.Revision || n == 0 {
		return fmt.Errorf("%s: revision %q: use a number that grows, e.g. opa build --revision 17", manifestFile, m.Revision)
	}
	b.Revision = n
	version := func(n int) (v0 bool, err error) {
		if n != RegoV0 && n != RegoV1 {
			return false, fmt.Errorf("%s: Rego version %d; 0 and 1 are known", manifestFile, n)
		}
		return n == RegoV0, nil
	}
	if m.RegoVersion != nil {
		if b.RegoV0, err = version(*m.RegoVersion); err != nil {
			return err
		}
	}
	for pattern, n := range m.FileVersions {
		old, err := version(n)
		if err != nil {
			return err
		}
		if strings.ContainsAny(pattern, "{}[]\\?") || strings.Contains(pattern, "**") {
			return fmt.Errorf("%s: pattern %q: only * is known here", manifestFile, pattern)
		}
		for name := range files {
			if ok, err := path.Match(strings.TrimPrefix(pattern, "/"), name); err != nil {
				return fmt.Errorf("%s: pattern %q: %w", manifestFile, pattern, err)
			} else if ok {
				if set, twice := b.ModuleRegoV0[name]; twice && set != old {
					return fmt.Errorf("%s: two patterns give %s different versions", manifestFile, name)
				}
				b.ModuleRegoV0[name] = old
			}
		}
	}
	return nil
}

// graft puts a document where its folder says.
func graft(data map[string]any, dir string, value any) error {
	v, ok := value.(map[string]any)
	if !ok {
		return errors.New("not a JSON object")
	}
	if dir != "." {
		for _, part := range strings.Split(dir, "/") {
			next, ok := data[part]
			if !ok {
				next = map[string]any{}
				data[part] = next
			}
			if data, ok = next.(map[string]any); !ok {
				return fmt.Errorf("%q has a value already", part)
			}
		}
	}
	return union(data, v)
}

func union(into, from map[string]any) error {
	for k, v := range from {
		have, ok := into[k]
		if !ok {
			into[k] = v
			continue
		}
		a, okA := have.(map[string]any)
		b, okB := v.(map[string]any)
		if !okA || !okB {
			return fmt.Errorf("%q has a value already", k)
		}
		if err := union(a, b); err != nil {
			return err
		}
	}
	return nil
}
