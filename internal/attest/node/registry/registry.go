// Package registry remembers which nodes have attested: what certificate
// each was last given, and who is banned. The store decides races; memory
// only saves reads.
package registry

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/legation-io/legation/internal/attest/node"
	"github.com/legation-io/legation/internal/clock"
	"github.com/legation-io/legation/internal/fault"
	"github.com/legation-io/legation/internal/store"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// Kind is the kind of a node's key in the store, in namespace store.System.
const Kind = "node"

const recordVersion = 1

// Record is one attested node, as stored.
type Record struct {
	Name     string `json:"name"`
	SPIFFEID string `json:"spiffeID"`
	Method   string `json:"method"`
	// AttestedAt is the latest attestation; renewals do not change it.
	AttestedAt time.Time `json:"attestedAt"`
	// Serial is the certificate last issued, lower-case hex; empty between
	// attestation and issuance.
	Serial string `json:"serial,omitempty"`
	// Superseded is the certificate that Serial was obtained with: still good
	// for another renewal, because the answer to the last may have been lost.
	Superseded string    `json:"superseded,omitempty"`
	ExpiresAt  time.Time `json:"expiresAt"`
	Banned     bool      `json:"banned,omitempty"`
	BanReason  string    `json:"banReason,omitempty"`
	BannedBy   string    `json:"bannedBy,omitempty"`
	BannedAt   time.Time `json:"bannedAt,omitzero"`

	revision int64
}

// Holds reports whether a certificate serial is one this node may act with.
func (r Record) Holds(serial string) bool {
	return serial != "" && (serial == r.Serial || serial == r.Superseded)
}

// Check is nil when the node may act with that certificate, and
// fault.Denied with the next step when it may not.
func (r Record) Check(serial string) error {
	if r.Banned {
		return fault.New(fault.Denied, "node %s is banned (%s); an administrator can lift it: legation node unban %s", r.Name, r.BanReason, r.Name)
	}
	if !r.Holds(serial) {
		return fault.New(fault.Denied, "certificate %s of node %s is not the one last issued to it; attest the node again: legation token create --node %s", serial, r.Name, r.Name)
	}
	return nil
}

// Params is what a Registry needs.
type Params struct {
	Store       store.Store
	TrustDomain spiffeid.TrustDomain
	Clock       clock.Clock
	Log         *slog.Logger
}

// Registry is the set of nodes of one trust domain.
type Registry struct {
	p Params

	mu      sync.Mutex // guards all below
	seen    map[string]*watched
	synced  bool
	changed chan struct{} // closed at any change
}

type watched struct {
	record  Record
	exists  bool
	changed chan struct{} // closed when record changes; nil when nobody waits
}

// New returns a registry; Run keeps its memory current.
func New(p Params) *Registry {
	if p.Clock == nil {
		p.Clock = clock.System
	}
	if p.Log == nil {
		p.Log = slog.New(slog.DiscardHandler)
	}
	return &Registry{p: p, seen: map[string]*watched{}, changed: make(chan struct{})}
}

func (r *Registry) prefix() string {
	return store.Prefix + r.p.TrustDomain.Name() + "/" + store.System + "/" + Kind + "/"
}

func (r *Registry) key(name string) string {
	return store.Key{TrustDomain: r.p.TrustDomain.Name(), Namespace: store.System, Kind: Kind, Name: name}.String()
}

func decode(kv store.KV) (Record, error) {
	var rec Record
	_, data, err := store.DecodeAs(Kind, recordVersion, kv.Value)
	if err == nil {
		err = json.Unmarshal(data, &rec)
	}
	if err != nil {
		return Record{}, fmt.Errorf("read node record %s: %w", kv.Key, err)
	}
	rec.revision = kv.Revision
	return rec, nil
}

// Get reads one record from the store; fault.NotFound when no such node
// has attested.
func (r *Registry) Get(ctx context.Context, name string) (Record, error) {
	kv, err := r.p.Store.Get(ctx, r.key(name))
	if fault.Is(err, fault.NotFound) {
		return Record{}, fault.New(fault.NotFound, "no node %q has attested; legation node list shows those that have", name)
	}
	if err != nil {
		return Record{}, fmt.Errorf("read node %s: %w", name, err)
	}
	rec, err := decode(kv)
	if err == nil {
		r.note(rec)
	}
	return rec, err
}

// List reads all records from the store, by name.
func (r *Registry) List(ctx context.Context) ([]Record, error) {
	kvs, _, err := r.p.Store.List(ctx, r.prefix())
	if err != nil {
		return nil, fmt.Errorf("list nodes: %w", err)
	}
	records := make([]Record, 0, len(kvs))
	var broken []error
	for _, kv := range kvs {
		rec, err := decode(kv)
		if err != nil {
			broken = append(broken, err)
			continue
		}
		records = append(records, rec)
	}
	return records, errors.Join(broken...)
}

// tries bounds how often a read-change-write is tried against other writers.
const tries = 16

// change applies f to the stored record in one compare-and-set.
func (r *Registry) change(ctx context.Context, name string, f func(*Record) error) (Record, error) {
	for range tries {
		rec, err := r.Get(ctx, name)
		if err != nil {
			return Record{}, err
		}
		if err := f(&rec); err != nil {
			return Record{}, err
		}
		err = r.commit(ctx, &rec, nil)
		if !fault.Is(err, fault.Conflict) {
			return rec, err
		}
	}
	return Record{}, fault.New(fault.Unavailable, "node %s is being changed by many at once; try again", name)
}

func (r *Registry) commit(ctx context.Context, rec *Record, spend []node.Spend) error {
	value, err := json.Marshal(rec)
	if err != nil {
		return fmt.Errorf("write node %s: %w", rec.Name, err)
	}
	value = store.EncodeValue(Kind, recordVersion, value)
	txn := store.Txn{
		If:   []store.Cond{{Key: r.key(rec.Name), Revision: rec.revision}},
		Then: []store.Op{{Key: r.key(rec.Name), Value: value}},
	}
	for _, s := range spend {
		txn.If = append(txn.If, store.Cond{Key: s.Key, Revision: s.Revision})
		txn.Then = append(txn.Then, store.Op{Key: s.Key, Value: s.Value})
	}
	revision, err := r.p.Store.Commit(ctx, txn)
	if err != nil {
		return fmt.Errorf("write node %s: %w", rec.Name, err)
	}
	rec.revision = revision
	r.note(*rec)
	return nil
}

// Admit records a node that attested, together with what its proof spends:
// both or neither. It returns fault.Denied for a banned node and
// fault.Conflict when the proof was spent by another in the meantime.
// Certificates of an earlier attestation are no longer the node's.
func (r *Registry) Admit(ctx context.Context, method string, claim node.Claim) (Record, error) {
	id, err := node.ID(r.p.TrustDomain, claim.Node)
	if err != nil {
		return Record{}, fmt.Errorf("admit node: %w", err)
	}
	for range tries {
		rec, err := r.Get(ctx, claim.Node)
		if err != nil && !fault.Is(err, fault.NotFound) {
			return Record{}, err
		}
		if rec.Banned {
			return Record{}, rec.Check("")
		}
		before := rec.revision
		rec = Record{Name: claim.Node, SPIFFEID: id.String(), Method: method,
			AttestedAt: r.p.Clock.Now().UTC(), revision: before}
		err = r.commit(ctx, &rec, claim.Spend)
		if !fault.Is(err, fault.Conflict) {
			return rec, err
		}
		// The proof was spent, or the node's record changed: only the latter
		// is worth another try.
		for _, s := range claim.Spend {
			kv, gerr := r.p.Store.Get(ctx, s.Key)
			if gerr != nil || kv.Revision != s.Revision {
				return Record{}, fault.New(fault.Conflict, "the proof for node %s was used by another attestation at the same time", claim.Node)
			}
		}
	}
	return Record{}, fault.New(fault.Unavailable, "node %s is attested by many at once; try again", claim.Node)
}

// Issued records the certificate just signed for a node. presented is the
// serial the node showed when it asked, empty at attestation; it must still
// be the node's, else fault.Denied and the new certificate must not be
// handed out.
func (r *Registry) Issued(ctx context.Context, admitted Record, presented, serial string, expires time.Time) (Record, error) {
	return r.change(ctx, admitted.Name, func(rec *Record) error {
		if presented == "" {
			// Another attestation or a ban has come in between.
			if rec.revision != admitted.revision {
				return fault.New(fault.Denied, "node %s was attested again or banned while its certificate was signed", rec.Name)
			}
		} else if err := rec.Check(presented); err != nil {
			return err
		}
		rec.Serial, rec.Superseded, rec.ExpiresAt = serial, presented, expires.UTC()
		return nil
	})
}

// Ban takes a node's rights away until Lift: it can attest, renew and ask
// nothing, and its streams end. actor is who asked.
func (r *Registry) Ban(ctx context.Context, name, reason, actor string) (Record, error) {
	if reason == "" {
		reason = "no reason given"
	}
	return r.change(ctx, name, func(rec *Record) error {
		rec.Banned, rec.BanReason, rec.BannedBy, rec.BannedAt = true, reason, actor, r.p.Clock.Now().UTC()
		return nil
	})
}

// Lift ends a ban. The node acts with the certificate it has, if that is
// still valid.
func (r *Registry) Lift(ctx context.Context, name, actor string) (Record, error) {
	return r.change(ctx, name, func(rec *Record) error {
		if !rec.Banned {
			return fault.New(fault.Invalid, "node %s is not banned", name)
		}
		rec.Banned, rec.BanReason, rec.BannedBy, rec.BannedAt = false, "", "", time.Time{}
		r.p.Log.Info("ban lifted", "node", name, "actor", actor)
		return nil
	})
}
