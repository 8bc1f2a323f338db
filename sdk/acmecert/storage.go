package acmecert

import (
	"context"
	"io/fs"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/caddyserver/certmagic"

	"github.com/legation-io/legation/sdk/acmecert/internal/keys"
)

// Storage is where account, keys, certificates and challenges lie and what
// replicas take turns by: certmagic's interface, so that any of its storages
// fits. Values hold private keys; a Storage that is not on this machine must
// seal them (Folder and objectstore.Storage do).
type Storage = certmagic.Storage

// unlock gives a lock back, though ctx may have ended.
func unlock(ctx context.Context, s Storage, lock string, log *slog.Logger) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), storageTimeout)
	defer cancel()
	if err := s.Unlock(ctx, lock); err != nil {
		log.Warn("a lock is not given back", "lock", lock, "error", err)
	}
}

// storageTimeout bounds what is asked of a Storage outside of an order.
const storageTimeout = 30 * time.Second

// Memory is a Storage that ends with the process: every start orders anew,
// which a public certificate authority limits. For tests and short-lived
// names. The zero value is ready to use; Managers that share one share
// certificates.
type Memory struct {
	mu     sync.Mutex
	values map[string]memoryValue
	locks  map[string]chan struct{}
}

type memoryValue struct {
	value    []byte
	modified time.Time
}

// Store implements Storage.
func (m *Memory) Store(_ context.Context, key string, value []byte) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.values == nil {
		m.values = map[string]memoryValue{}
	}
	m.values[key] = memoryValue{append([]byte(nil), value...), time.Now()}
	return nil
}

// Load implements Storage.
func (m *Memory) Load(_ context.Context, key string) ([]byte, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	v, ok := m.values[key]
	if !ok {
		return nil, &fs.PathError{Op: "load", Path: key, Err: fs.ErrNotExist}
	}
	return append([]byte(nil), v.value...), nil
}

// Delete implements Storage: key, and everything below it.
func (m *Memory) Delete(_ context.Context, key string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	for k := range m.values {
		if k == key || strings.HasPrefix(k, key+"/") {
			delete(m.values, k)
		}
	}
	return nil
}

// Exists implements Storage.
func (m *Memory) Exists(_ context.Context, key string) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	if _, ok := m.values[key]; ok {
		return true
	}
	for k := range m.values {
		if strings.HasPrefix(k, key+"/") {
			return true
		}
	}
	return false
}

// List implements Storage.
func (m *Memory) List(_ context.Context, path string, recursive bool) ([]string, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return keys.Under(slices.Collect(maps.Keys(m.values)), path, recursive)
}

// Stat implements Storage.
func (m *Memory) Stat(_ context.Context, key string) (certmagic.KeyInfo, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if v, ok := m.values[key]; ok {
		return certmagic.KeyInfo{Key: key, Modified: v.modified, Size: int64(len(v.value)), IsTerminal: true}, nil
	}
	for k := range m.values {
		if strings.HasPrefix(k, key+"/") {
			return certmagic.KeyInfo{Key: key}, nil
		}
	}
	return certmagic.KeyInfo{}, &fs.PathError{Op: "stat", Path: key, Err: fs.ErrNotExist}
}

// Lock implements Storage.
func (m *Memory) Lock(ctx context.Context, name string) error {
	for {
		m.mu.Lock()
		if m.locks == nil {
			m.locks = map[string]chan struct{}{}
		}
		held, ok := m.locks[name]
		if !ok {
			m.locks[name] = make(chan struct{})
			m.mu.Unlock()
			return nil
		}
		m.mu.Unlock()
		select {
		case <-held:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// Unlock implements Storage.
func (m *Memory) Unlock(_ context.Context, name string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	held, ok := m.locks[name]
	if !ok {
		return &fs.PathError{Op: "unlock", Path: name, Err: fs.ErrNotExist}
	}
	delete(m.locks, name)
	close(held)
	return nil
}
