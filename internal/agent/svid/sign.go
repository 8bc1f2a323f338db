package svid

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"fmt"
	"math/big"
	"net/netip"
	"net/url"
	"runtime"
	"time"

	nodev1 "github.com/legation-io/legation/api/node/v1"
	"github.com/legation-io/legation/internal/fault"
	"github.com/legation-io/legation/sdk/secretmem"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

const (
	maxBatch    = 250
	signTimeout = 10 * time.Second
	spareKeys   = 16
)

// job is one item of a batch, as its entry was when the batch was made.
type job struct {
	slot  *slot
	key   slotKey
	entry *nodev1.Entry
	id    spiffeid.ID
	spec  string
	ips   []netip.Addr
	priv  *ecdsa.PrivateKey
	svid  *SVID
	err   error
}

// sign makes keys for the slots, has them signed in one call, and stores what
// came back.
func (m *Manager) sign(ctx context.Context, batch []*slot) {
	jobs := make([]*job, len(batch))
	m.mu.Lock()
	for i, s := range batch {
		jobs[i] = &job{slot: s, key: s.key, entry: s.entry, ips: s.ips}
		if s.entry == nil { // dropped since
			jobs[i].err = fault.New(fault.Denied, "its entry is gone")
		} else {
			jobs[i].spec = specOf(s.entry, s.ips)
		}
	}
	m.mu.Unlock()

	var items []*nodev1.X509Item
	var asked []*job
	for _, j := range jobs {
		if j.err != nil {
			continue
		}
		item, err := m.item(j)
		if err != nil {
			j.err = err
			continue
		}
		items, asked = append(items, item), append(asked, j)
	}
	if len(items) > 0 {
		m.metrics.batch.Observe(float64(len(items)))
		callCtx, cancel := context.WithTimeout(ctx, signTimeout)
		results, err := m.p.Signer.SignX509(callCtx, items)
		cancel()
		if err == nil && len(results) != len(items) {
			err = fmt.Errorf("sign %d certificates: the control plane answered %d", len(items), len(results))
		}
		for i, j := range asked {
			if err != nil {
				j.err = err
			} else {
				j.svid, j.err = m.accept(j, results[i])
			}
		}
		if ctx.Err() == nil {
			m.noteLink(err)
		}
	}
	m.finish(ctx, jobs)
}

// item makes the key and the request for it.
func (m *Manager) item(j *job) (*nodev1.X509Item, error) {
	id, err := spiffeid.FromString(j.entry.SpiffeId)
	if err != nil {
		return nil, fault.New(fault.Invalid, "entry %s: %w", j.entry.Name, err)
	}
	j.id = id
	select {
	case j.priv = <-m.spares:
	default:
		if j.priv, err = newKey(); err != nil {
			return nil, err
		}
	}
	csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{URIs: []*url.URL{id.URL()}}, j.priv)
	if err != nil {
		return nil, fmt.Errorf("request a certificate for %s: %w", id, err)
	}
	item := &nodev1.X509Item{Entry: j.entry.Name, SpiffeId: j.entry.SpiffeId, Instance: string(j.key.instance), Csr: csr}
	if j.entry.IncludeOwnIp {
		for _, ip := range j.ips {
			item.IpAddresses = append(item.IpAddresses, ip.Unmap().AsSlice())
		}
	}
	return item, nil
}

// accept checks what came back against what was asked.
func (m *Manager) accept(j *job, r *nodev1.X509Result) (*SVID, error) {
	if r.GetRefusal() != nil {
		kind := fault.Kind(r.Refusal.Kind)
		switch kind {
		case fault.Denied, fault.Invalid, fault.Limited, fault.NotFound, fault.Unavailable, fault.Conflict:
		default:
			kind = fault.Internal
		}
		return nil, fault.New(kind, "%s", r.Refusal.Message)
	}
	return newSVID(j, r.GetChain(), m.p.Clock.Now())
}

// newSVID is shared by what was signed now and what was restored.
func newSVID(j *job, chain [][]byte, wall time.Time) (*SVID, error) {
	if len(chain) == 0 {
		return nil, fmt.Errorf("the control plane signed nothing for %s", j.id)
	}
	leaf, err := x509.ParseCertificate(chain[0])
	if err != nil {
		return nil, fmt.Errorf("the certificate signed for %s: %w", j.id, err)
	}
	pub, ok := leaf.PublicKey.(*ecdsa.PublicKey)
	switch {
	case !ok || !pub.Equal(&j.priv.PublicKey):
		return nil, fmt.Errorf("the certificate signed for %s is over another key", j.id)
	case len(leaf.URIs) != 1 || leaf.URIs[0].String() != j.id.String():
		return nil, fmt.Errorf("the certificate signed for %s names %v", j.id, leaf.URIs)
	case !wall.Before(leaf.NotAfter):
		return nil, fmt.Errorf("the certificate for %s ended at %s and this machine's clock says %s; check the clock",
			j.id, leaf.NotAfter.UTC().Format(time.RFC3339), wall.UTC().Format(time.RFC3339))
	}
	addresses, err := addressesOf(leaf)
	if err != nil {
		return nil, fmt.Errorf("the certificate signed for %s: %w", j.id, err)
	}
	raw, err := x509.MarshalPKCS8PrivateKey(j.priv)
	if err != nil {
		return nil, fmt.Errorf("the key of %s: %w", j.id, err)
	}
	locked, err := lock(raw)
	if err != nil {
		return nil, fmt.Errorf("the key of %s: %w", j.id, err)
	}
	return &SVID{
		ID: j.id, Entry: j.entry, Instance: j.key.instance,
		Chain: chain, Key: j.priv, KeyPKCS8: locked.bytes,
		Serial:    serialHex(leaf.SerialNumber),
		NotBefore: leaf.NotBefore, NotAfter: leaf.NotAfter,
		RenewAt:   renewAt(wall, leaf.NotAfter),
		addresses: addresses, keep: locked,
	}, nil
}

// serialHex is how the authority writes a serial in revocations: no leading
// zero.
func serialHex(n *big.Int) string { return n.Text(16) }

// lockedKey owns a secretmem.Buffer for as long as any SVID refers to it.
type lockedKey struct{ bytes []byte }

func lock(raw []byte) (*lockedKey, error) {
	b, err := secretmem.From(raw)
	if err != nil {
		return nil, err
	}
	k := &lockedKey{bytes: b.Bytes()}
	runtime.AddCleanup(k, func(b *secretmem.Buffer) { b.Close() }, b)
	return k, nil
}

// finish stores the outcome of a batch and wakes whoever waits for it.
func (m *Manager) finish(ctx context.Context, jobs []*job) {
	wall := m.p.Clock.Now()
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, j := range jobs {
		s := j.slot
		s.inflight = false
		if m.slots[j.key] != s || ctx.Err() != nil {
			continue
		}
		if j.err != nil {
			m.metrics.signed.WithLabelValues(string(fault.KindOf(j.err))).Inc()
			s.failed(j.err)
			m.adoptLocked(s, j.err, wall)
			s.wakeAll()
			continue
		}
		m.metrics.signed.WithLabelValues("signed").Inc()
		if s.entry != nil && s.entry.Blocked {
			continue
		}
		if s.entry != nil {
			j.svid.Entry = s.entry
		}
		s.supersede(j.svid)
		s.put(j.svid, j.spec, wall)
		m.settleLocked(s)
		if _, revoked := m.revoked[j.svid.Serial]; revoked { // overtaken on the way
			s.revoked = true
		}
		signal(m.dirty)
	}
	m.evictLocked()
}

// noteLink logs the loss and the return of the control plane once each.
func (m *Manager) noteLink(err error) {
	m.mu.Lock()
	was := m.down
	m.down = err != nil
	m.mu.Unlock()
	switch {
	case err != nil && !was:
		m.log.Warn("certificates cannot be signed; what is held is served until it expires", "error", err)
	case err == nil && was:
		m.log.Info("certificates are signed again")
	}
}

func newKey() (*ecdsa.PrivateKey, error) {
	return ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
}

// makeSpares keeps a few keys ready, so that a first caller does not wait.
func (m *Manager) makeSpares(ctx context.Context) {
	for {
		key, err := newKey()
		if err != nil {
			m.log.Error("no spare key can be made", "error", err)
			return
		}
		select {
		case m.spares <- key:
		case <-ctx.Done():
			return
		}
	}
}
