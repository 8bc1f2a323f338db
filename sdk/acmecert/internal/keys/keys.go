// Package keys says what a key of a stored value may look like, and which are
// in a list; every Storage of acmecert has the same.
package keys

import (
	"fmt"
	"io/fs"
	"maps"
	"slices"
	"strings"
)

// Valid says why a key is refused: the rule of Legation's store, which is safe
// as a path too.
func Valid(key string) error {
	if key == "" || len(key) > 512 {
		return fmt.Errorf("a name of %d bytes is refused: it must have 1 to 512", len(key))
	}
	for segment := range strings.SplitSeq(key, "/") {
		if segment == "" || segment == "." || segment == ".." {
			return fmt.Errorf("the name %q is refused: its segment %q is empty or leads elsewhere", key, segment)
		}
		for _, c := range []byte(segment) {
			ok := c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || strings.IndexByte("._@*+-", c) >= 0
			if !ok {
				return fmt.Errorf("the name %q is refused: only [A-Za-z0-9._@*+-] and / may be in it", key)
			}
		}
	}
	return nil
}

// Under answers certmagic.Storage.List out of all keys, or out of those that
// begin with path: in order, by whole segments, a folder once;
// fs.ErrNotExist when there are none.
func Under(keys []string, path string, recursive bool) ([]string, error) {
	prefix := strings.Trim(path, "/")
	if prefix != "" {
		prefix += "/"
	}
	seen := map[string]bool{}
	for _, k := range keys {
		rest, ok := strings.CutPrefix(k, prefix)
		if !ok {
			continue
		}
		if first, _, deep := strings.Cut(rest, "/"); deep && !recursive {
			k = prefix + first
		}
		seen[k] = true
	}
	if len(seen) == 0 {
		return nil, &fs.PathError{Op: "list", Path: path, Err: fs.ErrNotExist}
	}
	return slices.Sorted(maps.Keys(seen)), nil
}
