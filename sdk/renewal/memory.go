package renewal

import (
	"cmp"
	"context"
	"fmt"
	"reflect"
	"slices"
	"strconv"
	"sync"
)

// Memory is a Store in memory. Keys in it live as long as the process. The
// zero value is empty and ready to use.
type Memory struct {
	mu       sync.Mutex
	revision int64
	objects  map[Key]*memoryObject
	secrets  map[Key]memorySecret
	watchers map[*memoryWatcher]struct{}
}

type memoryObject struct {
	certificate *Certificate
	revision    int64
}

type memorySecret struct {
	secret   *Secret
	revision int64
}

// memoryWatcher holds each key once, however slow its reader.
type memoryWatcher struct {
	pending map[Key]struct{}
	wake    chan struct{}
}

// NewMemory returns a store that holds certificates.
func NewMemory(list ...*Certificate) (*Memory, error) {
	m := &Memory{}
	for _, c := range list {
		if err := m.Apply(c); err != nil {
			return nil, err
		}
	}
	return m, nil
}

// Apply declares a certificate: it is added, or its spec, labels and
// annotations replace what was declared before. Its status is left out.
func (m *Memory) Apply(c *Certificate) error {
	if err := c.Validate(); err != nil {
		return fmt.Errorf("certificate %s: %w", c.Key(), err)
	}
	next, k := c.Clone(), c.Key()
	next.APIVersion, next.Kind, next.Metadata.Namespace = APIVersion, Kind, k.Namespace
	m.mu.Lock()
	defer m.mu.Unlock()
	next.Status, next.Metadata.Generation = CertificateStatus{}, 1
	if old := m.objects[k]; old != nil {
		next.Status, next.Metadata.Generation = old.certificate.Status, old.certificate.Metadata.Generation
		if !reflect.DeepEqual(next.Spec, old.certificate.Spec) {
			next.Metadata.Generation++
		}
	}
	m.putLocked(k, next)
	return nil
}

// Delete removes a certificate; its Secret stays.
func (m *Memory) Delete(k Key) {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.objects, k)
	m.notifyLocked(k)
}

func (m *Memory) putLocked(k Key, c *Certificate) {
	if m.objects == nil {
		m.objects = make(map[Key]*memoryObject)
	}
	m.revision++
	c.Metadata.ResourceVersion = strconv.FormatInt(m.revision, 10)
	m.objects[k] = &memoryObject{c, m.revision}
	m.notifyLocked(k)
}

func (m *Memory) notifyLocked(k Key) {
	for w := range m.watchers {
		w.pending[k] = struct{}{}
		select {
		case w.wake <- struct{}{}:
		default:
		}
	}
}

// List implements Store.
func (m *Memory) List(context.Context) ([]Ref, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	out := make([]Ref, 0, len(m.objects))
	var b []byte
	for k, o := range m.objects {
		b = strconv.AppendInt(b[:0], o.revision, 10)
		b = strconv.AppendInt(append(b, '.'), m.secrets[Key{k.Namespace, o.certificate.Spec.SecretName}].revision, 10)
		out = append(out, Ref{k, string(b)})
	}
	slices.SortFunc(out, func(a, b Ref) int {
		return cmp.Or(cmp.Compare(a.Key.Namespace, b.Key.Namespace), cmp.Compare(a.Key.Name, b.Key.Name))
	})
	return out, nil
}

// Get implements Store.
func (m *Memory) Get(_ context.Context, k Key) (*Certificate, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if o := m.objects[k]; o != nil {
		return o.certificate.Clone(), nil
	}
	return nil, ErrNotFound
}

// UpdateStatus implements Store.
func (m *Memory) UpdateStatus(_ context.Context, c *Certificate) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	o := m.objects[c.Key()]
	switch {
	case o == nil:
		return ErrNotFound
	case o.certificate.Metadata.ResourceVersion != c.Metadata.ResourceVersion:
		return ErrConflict
	}
	next := *o.certificate
	next.Status = c.Clone().Status
	m.putLocked(c.Key(), &next)
	c.Metadata.ResourceVersion = next.Metadata.ResourceVersion
	return nil
}

// Watch implements Store.
func (m *Memory) Watch(ctx context.Context, changed func(Key)) error {
	w := &memoryWatcher{pending: make(map[Key]struct{}), wake: make(chan struct{}, 1)}
	w.wake <- struct{}{}
	m.mu.Lock()
	for k := range m.objects {
		w.pending[k] = struct{}{}
	}
	if m.watchers == nil {
		m.watchers = make(map[*memoryWatcher]struct{})
	}
	m.watchers[w] = struct{}{}
	m.mu.Unlock()
	defer func() {
		m.mu.Lock()
		delete(m.watchers, w)
		m.mu.Unlock()
	}()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-w.wake:
		}
		m.mu.Lock()
		pending := w.pending
		w.pending = make(map[Key]struct{})
		m.mu.Unlock()
		for k := range pending {
			changed(k)
		}
	}
}

// GetSecret implements Store.
func (m *Memory) GetSecret(_ context.Context, namespace, name string) (*Secret, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if s, ok := m.secrets[Key{namespace, name}]; ok {
		return s.secret.Clone(), nil
	}
	return nil, ErrNotFound
}

// PutSecret implements Store.
func (m *Memory) PutSecret(_ context.Context, s *Secret) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.secrets == nil {
		m.secrets = make(map[Key]memorySecret)
	}
	m.revision++
	m.secrets[Key{s.Namespace, s.Name}] = memorySecret{s.Clone(), m.revision}
	return nil
}

// DeleteSecret implements Store.
func (m *Memory) DeleteSecret(_ context.Context, namespace, name string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if s, ok := m.secrets[Key{namespace, name}]; ok {
		for _, v := range s.secret.Data {
			clear(v)
		}
		delete(m.secrets, Key{namespace, name})
	}
	return nil
}
