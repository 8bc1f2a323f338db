package etcd

import (
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/legation-io/legation/internal/durable"
)

// A store that is closed in order leaves a mark: the hash of its page file,
// which nothing changes until the next start. It finds what the checks of
// each page and value cannot: a flipped bit in a deletion, a revision number,
// an index. After a crash there is no mark.
type cleanMark struct {
	Size   int64  `json:"size"`
	SHA256 []byte `json:"sha256"`
}

func markPath(dir string) string { return filepath.Join(dir, "closed.json") }

func writeMark(dir string) error {
	size, sum, err := hashFile(dbPath(dir))
	if err != nil {
		return err
	}
	data, err := json.Marshal(cleanMark{size, sum})
	if err != nil {
		return err
	}
	return durable.OS.WriteFile(markPath(dir), data, 0o600)
}

func matchesMark(dir string) error {
	data, err := durable.OS.ReadFile(markPath(dir))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	var want cleanMark
	if err := json.Unmarshal(data, &want); err != nil {
		return fmt.Errorf("%s cannot be read: %w", markPath(dir), err)
	}
	size, sum, err := hashFile(dbPath(dir))
	if err != nil {
		return err
	}
	if size != want.Size || string(sum) != string(want.SHA256) {
		return fmt.Errorf("%s is not as it was when the store was closed", dbPath(dir))
	}
	return nil
}

func hashFile(path string) (int64, []byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return 0, nil, err
	}
	defer f.Close()
	h := sha256.New()
	size, err := io.Copy(h, f)
	if err != nil {
		return 0, nil, fmt.Errorf("read %s: %w", path, err)
	}
	return size, h.Sum(nil), nil
}
