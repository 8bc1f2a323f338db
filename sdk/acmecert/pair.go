package acmecert

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"sync"

	"github.com/caddyserver/certmagic"
)

// pairs is what certmagic stores by: it writes key, certificate and metadata
// one after the other, and a crash or another replica's read in between would
// meet a key that does not fit. Here the three are one value, written when the
// last of them is there.
type pairs struct {
	Storage

	mu      sync.Mutex
	writing map[string]*pair
}

// pair is a certificate as it lies in the Storage.
type pair struct {
	Key         []byte          `json:"key"`         // PEM
	Certificate []byte          `json:"certificate"` // PEM, leaf first
	Metadata    json.RawMessage `json:"metadata,omitempty"`
}

func newPairs(s Storage) *pairs { return &pairs{Storage: s, writing: map[string]*pair{}} }

// part splits "certificates/<ca>/<name>/<name>.key" into where the pair lies
// and which part of it is meant.
func part(key string) (at, what string, ok bool) {
	if !strings.HasPrefix(key, "certificates/") {
		return "", "", false
	}
	for _, suffix := range []string{".key", ".crt", ".json"} {
		if at, ok := strings.CutSuffix(key, suffix); ok {
			return at + ".pair", suffix, true
		}
	}
	return "", "", false
}

// pairKey is where the pair of a domain lies.
func pairKey(issuer, domain string) string {
	at, _, _ := part(certmagic.StorageKeys.SiteCert(issuer, domain))
	return at
}

// Store implements Storage.
func (p *pairs) Store(ctx context.Context, key string, value []byte) error {
	at, what, ok := part(key)
	if !ok {
		return p.Storage.Store(ctx, key, value)
	}
	p.mu.Lock()
	w := p.writing[at]
	if w == nil || what == ".key" { // certmagic writes the key first
		w = &pair{}
		p.writing[at] = w
	}
	value = append([]byte(nil), value...)
	switch what {
	case ".key":
		w.Key = value
	case ".crt":
		w.Certificate = value
	case ".json":
		w.Metadata = value
	}
	if w.Key == nil || w.Certificate == nil || w.Metadata == nil {
		p.mu.Unlock()
		return nil
	}
	delete(p.writing, at)
	p.mu.Unlock()
	whole, err := json.Marshal(w)
	if err != nil {
		return fmt.Errorf("store %s: %w", at, err)
	}
	return p.Storage.Store(ctx, at, whole)
}

// Load implements Storage.
func (p *pairs) Load(ctx context.Context, key string) ([]byte, error) {
	at, what, ok := part(key)
	if !ok {
		return p.Storage.Load(ctx, key)
	}
	whole, err := p.load(ctx, at)
	if err != nil {
		return nil, err
	}
	switch what {
	case ".key":
		return whole.Key, nil
	case ".crt":
		return whole.Certificate, nil
	default:
		return whole.Metadata, nil
	}
}

func (p *pairs) load(ctx context.Context, at string) (*pair, error) {
	value, err := p.Storage.Load(ctx, at)
	if err != nil {
		return nil, err
	}
	whole := &pair{}
	if err := json.Unmarshal(value, whole); err != nil {
		return nil, fmt.Errorf("%s is no stored certificate: %w", at, err)
	}
	return whole, nil
}

// Exists implements Storage. What cannot be opened exists: it is never
// overwritten because a key was mistaken.
func (p *pairs) Exists(ctx context.Context, key string) bool {
	at, _, ok := part(key)
	if !ok {
		return p.Storage.Exists(ctx, key)
	}
	_, err := p.Storage.Load(ctx, at)
	return err == nil || !errors.Is(err, fs.ErrNotExist)
}

// Delete implements Storage. Of a pair certmagic takes back the parts that it
// wrote before one that could not be stored: nothing of them was, and what lies
// there is the certificate before.
func (p *pairs) Delete(ctx context.Context, key string) error {
	at, _, ok := part(key)
	if !ok {
		return p.Storage.Delete(ctx, key)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.writing, at)
	return nil
}

// Stat implements Storage.
func (p *pairs) Stat(ctx context.Context, key string) (certmagic.KeyInfo, error) {
	at, _, ok := part(key)
	if !ok {
		return p.Storage.Stat(ctx, key)
	}
	info, err := p.Storage.Stat(ctx, at)
	info.Key = key
	return info, err
}
