package svid

import (
	"context"
	"crypto/ecdsa"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	nodev1 "github.com/legation-io/legation/api/node/v1"
	"github.com/legation-io/legation/internal/fault"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// cacheName is the sealed file's name; cacheVersion its content's.
const (
	cacheName    = "svids"
	cacheVersion = 1
	persistAgain = 5 * time.Second // after a write that failed
)

type cacheFile struct {
	Version int         `json:"version"`
	SVIDs   []cacheSVID `json:"svids"`
	// Retired are of instances that ended.
	Retired []cacheSVID `json:"retired,omitempty"`
	// Superseded are on their way into the CRL.
	Superseded []superseded `json:"superseded,omitempty"`
}

type cacheSVID struct {
	Entry    string    `json:"entry"`
	ID       string    `json:"spiffeID"`
	Instance string    `json:"instance"`
	Spec     string    `json:"spec"`
	Chain    [][]byte  `json:"chain"`
	Key      []byte    `json:"key"` // PKCS #8
	SignedAt time.Time `json:"signedAt"`
	RenewAt  time.Time `json:"renewAt"`
	UsedAt   time.Time `json:"usedAt"`
	// Supersedes are certificates it replaces that may still be presented.
	Supersedes []superseded `json:"supersedes,omitempty"`
}

// persist writes the sealed cache whenever it is behind, one write at a time.
func (m *Manager) persist(ctx context.Context) {
	if m.p.Sealed == nil {
		return
	}
	for {
		select {
		case <-ctx.Done():
			return
		case <-m.dirty:
		}
		if err := m.save(); err != nil {
			m.log.Error("the sealed cache could not be written; after a restart certificates are signed anew", "error", err)
			select {
			case <-ctx.Done():
				return
			case <-time.After(persistAgain):
				signal(m.dirty)
			}
		}
	}
}

func (m *Manager) save() error {
	var held []*SVID // keeps the keys' memory
	file := cacheFile{Version: cacheVersion}
	wall := m.p.Clock.Now()
	m.mu.Lock()
	for _, s := range m.slots {
		if s.svid == nil || s.revoked {
			continue
		}
		used := s.usedAt
		if len(s.subs) > 0 {
			used = wall
		}
		held = append(held, s.svid)
		file.SVIDs = append(file.SVIDs, cacheSVID{
			Entry: s.key.entry, ID: s.svid.ID.String(), Instance: string(s.key.instance), Spec: s.spec,
			Chain: s.svid.Chain, Key: s.svid.KeyPKCS8,
			SignedAt: s.signedAt, RenewAt: s.svid.RenewAt, UsedAt: used, Supersedes: s.supersedes,
		})
	}
	m.pruneRetiredLocked(wall)
	for _, entry := range slices.Sorted(maps.Keys(m.retired)) {
		r := m.retired[entry]
		held = append(held, r.svid)
		file.Retired = append(file.Retired, cacheSVID{
			Entry: entry, ID: r.svid.ID.String(), Instance: r.kind, Spec: r.spec, Chain: r.svid.Chain, Key: r.svid.KeyPKCS8, RenewAt: r.svid.RenewAt,
		})
	}
	for _, serial := range slices.Sorted(maps.Keys(m.superseded)) {
		file.Superseded = append(file.Superseded, superseded{serial, m.superseded[serial]})
	}
	m.mu.Unlock()
	slices.SortFunc(file.SVIDs, func(a, b cacheSVID) int {
		return strings.Compare(a.Entry+"\x00"+a.Instance, b.Entry+"\x00"+b.Instance)
	})
	plain, err := json.Marshal(file)
	if err != nil {
		return err
	}
	clear(held)
	defer clear(plain)
	return m.p.Sealed.Write(cacheName, plain)
}

// restore takes back what was held before a restart. It is served once a
// View names its entry; expired or damaged items are left out.
func (m *Manager) restore() {
	if m.p.Sealed == nil {
		return
	}
	plain, err := m.p.Sealed.Read(cacheName)
	if fault.Is(err, fault.NotFound) {
		return
	}
	defer clear(plain)
	var file cacheFile
	if err == nil {
		err = json.Unmarshal(plain, &file)
	}
	if err == nil && file.Version != cacheVersion {
		err = fmt.Errorf("version %d, this program reads %d", file.Version, cacheVersion)
	}
	if err != nil {
		m.log.Warn("the sealed cache is not used; certificates are signed anew", "error", err)
		return
	}
	wall := m.p.Clock.Now()
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, old := range file.Superseded {
		m.superseded[old.Serial] = old.NotAfter
	}
	for _, c := range file.SVIDs {
		key := slotKey{c.Entry, Instance(c.Instance)}
		if old := m.slots[key]; old != nil && old.svid != nil {
			continue
		}
		v, err := c.svid(wall)
		if err != nil {
			m.log.Info("an SVID of the sealed cache is left out", "entry", c.Entry, "error", err)
			continue
		}
		s := m.slots[key]
		if s == nil {
			s = &slot{key: key, subs: map[*Subscription]struct{}{}}
			s.elem = m.idle.PushFront(s)
			m.slots[key] = s
		}
		v.RenewAt = c.RenewAt
		s.put(v, c.Spec, wall)
		s.signedAt, s.usedAt, s.supersedes = c.SignedAt, c.UsedAt, c.Supersedes
	}
	for _, c := range file.Retired {
		if v, err := c.svid(wall); err == nil && len(m.retired) < m.p.CacheSize {
			m.retired[c.Entry] = retired{c.Instance, c.Spec, v}
		}
	}
	m.evictLocked()
}

func (c *cacheSVID) svid(wall time.Time) (*SVID, error) {
	id, err := spiffeid.FromString(c.ID)
	if err != nil {
		return nil, err
	}
	defer clear(c.Key)
	key, err := x509.ParsePKCS8PrivateKey(c.Key)
	if err != nil {
		return nil, errors.New("its key cannot be read")
	}
	priv, ok := key.(*ecdsa.PrivateKey)
	if !ok {
		return nil, errors.New("its key is not ECDSA")
	}
	// The entry is known when a View comes.
	return newSVID(&job{key: slotKey{c.Entry, Instance(c.Instance)}, entry: &nodev1.Entry{Name: c.Entry, SpiffeId: c.ID}, id: id, priv: priv}, c.Chain, wall)
}
