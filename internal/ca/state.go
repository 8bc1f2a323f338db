package ca

import (
	"context"
	"fmt"
	"maps"
	"strings"
	"time"

	nodev1 "github.com/legation-io/legation/api/node/v1"
	"github.com/legation-io/legation/internal/fault"
	"github.com/legation-io/legation/internal/store"
)

// State is what everybody must know of an authority, as of one moment. It is
// immutable; a change is a new State that shares what did not change.
type State struct {
	Bundle *nodev1.Bundle
	CRL    *nodev1.CRL
	// Revocations by id.
	Revocations map[string]*nodev1.Revocation
	// Blocked by SPIFFE ID: nothing is issued until lifted.
	Blocked map[string]bool
	// BlockedNodes by node name.
	BlockedNodes map[string]bool
	Heartbeat    *nodev1.Heartbeat

	crlRevision int64
	serials     map[string]Revoked
	revokedKeys map[keyTag]bool
}

// Revoked tells of one serial in the CRL.
type Revoked struct {
	At     time.Time
	Reason string
}

// Revoked returns when and why a serial (lower-case hex) was revoked.
func (s *State) Revoked(serial string) (Revoked, bool) {
	r, ok := s.serials[serial]
	return r, ok
}

// blocks returns fault.Denied when nothing may be issued for an identity or
// to a node.
func (s *State) blocks(id, node string) error {
	if s.Blocked[id] {
		return fault.New(fault.Denied, "%s is revoked; nothing is issued for it until somebody lifts that (legation lift %s)", id, id)
	}
	if s.BlockedNodes[node] {
		return fault.New(fault.Denied, "node %s is revoked; nothing is issued to it until somebody lifts that (legation node unban %s)", node, node)
	}
	return nil
}

// BlocksNode returns fault.Denied when nothing may be issued to a node.
func (s *State) BlocksNode(node string) error { return s.blocks("", node) }

// known is what the store was last seen to hold.
type known struct {
	crl         *crlObject
	crlRevision int64
	revocations map[string]knownRevocation
	read        int64 // everything up to this revision was seen
}

type knownRevocation struct {
	*revocationObject       // nil: deleted at revision
	revision          int64 // of its key
}

// State returns the latest State and a channel that is closed when it is
// replaced.
func (a *Authority) State() (*State, <-chan struct{}) { return a.state.Load() }

// newerThan returns a State with a later CRL than old's. Of many that ask at
// once one reads the store.
func (a *Authority) newerThan(ctx context.Context, old *State) (*State, error) {
	select {
	case a.reading <- struct{}{}:
		defer func() { <-a.reading }()
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	if s := a.state.Get(); s.crlRevision > old.crlRevision {
		return s, nil
	}
	err := a.reload(ctx)
	return a.state.Get(), err
}

// reload reads CRL and revocations from the store, as of one revision.
func (a *Authority) reload(ctx context.Context) error {
	kvs, revision, err := a.store.List(ctx, a.objectKey()+"/")
	if err != nil {
		return fmt.Errorf("read CRL and revocations: %w", err)
	}
	batch := store.Batch{Revision: revision}
	listed := make(map[string]bool, len(kvs))
	for _, kv := range kvs {
		listed[kv.Key] = true
		batch.Events = append(batch.Events, store.Event{KV: kv})
	}
	a.mu.Lock()
	for id, r := range a.known.revocations {
		if key := a.revocationKey(id); r.revocationObject != nil && r.revision <= revision && !listed[key] {
			batch.Events = append(batch.Events, store.Event{KV: store.KV{Key: key, Revision: revision}, Deleted: true})
		}
	}
	a.mu.Unlock()
	return a.apply(batch, true)
}

// apply takes over changes that are newer than what is known. inOrder says
// that everything up to the batch's revision has now been seen, which is not
// so for what this replica itself just wrote.
func (a *Authority) apply(batch store.Batch, inOrder bool) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	changed := false
	for _, e := range batch.Events {
		id, isRevocation := strings.CutPrefix(e.KV.Key, a.revocationKey(""))
		switch {
		case e.KV.Key == a.crlKey() && !e.Deleted:
			if e.KV.Revision <= a.known.crlRevision {
				continue
			}
			crl, err := decodeCRL(e.KV.Value)
			if err != nil {
				return err
			}
			a.known.crl, a.known.crlRevision = crl, e.KV.Revision
		case isRevocation:
			old, have := a.known.revocations[id]
			if have && e.KV.Revision <= old.revision {
				continue
			}
			r := knownRevocation{revision: e.KV.Revision}
			if !e.Deleted {
				r.revocationObject = new(revocationObject)
				if err := decodeObject(e.KV.Value, kindRevocation, r.revocationObject); err != nil {
					return fmt.Errorf("%s: %w", e.KV.Key, err)
				}
			}
			a.known.revocations[id] = r
		default:
			continue
		}
		changed = true
	}
	if inOrder {
		a.known.read = max(a.known.read, batch.Revision)
		// A deletion is remembered only until older writes can no longer come.
		maps.DeleteFunc(a.known.revocations, func(_ string, r knownRevocation) bool {
			return r.revocationObject == nil && r.revision <= a.known.read
		})
	}
	if a.known.crl == nil {
		return fault.New(fault.Internal, "the store holds an authority without a CRL: restore it from a backup")
	}
	if changed {
		a.publishLocked()
	}
	return nil
}

// publishLocked makes the State of what is known.
func (a *Authority) publishLocked() {
	crl := a.known.crl
	s := &State{
		Bundle:       a.bundle(),
		CRL:          &nodev1.CRL{Authority: DefaultName, Number: crl.Number, Lists: [][]byte{crl.Issuing, crl.Root}},
		Revocations:  make(map[string]*nodev1.Revocation, len(a.known.revocations)),
		Blocked:      make(map[string]bool),
		BlockedNodes: make(map[string]bool),
		crlRevision:  a.known.crlRevision,
		serials:      make(map[string]Revoked, len(crl.Entries)),
		revokedKeys:  make(map[keyTag]bool, len(crl.Entries)),
	}
	if old := a.state.Get(); old != nil {
		s.Bundle, s.Heartbeat = old.Bundle, old.Heartbeat
	}
	for _, e := range crl.Entries {
		reason := ""
		if e.Reason == reasonSuperseded {
			reason = "superseded"
		}
		s.serials[e.Serial] = Revoked{At: e.RevokedAt, Reason: reason}
		if e.Key != (keyTag{}) {
			s.revokedKeys[e.Key] = true
		}
	}
	for id, r := range a.known.revocations {
		if r.revocationObject == nil {
			continue
		}
		s.Revocations[id] = r.proto()
		if r.Blocks && r.SPIFFEID != "" {
			s.Blocked[r.SPIFFEID] = true
		}
		if r.Blocks && r.Node != "" {
			s.BlockedNodes[r.Node] = true
		}
		for _, serial := range r.Serials {
			if e, ok := s.serials[serial]; ok && r.Reason != "" {
				s.serials[serial] = Revoked{At: e.At, Reason: r.Reason}
			}
		}
	}
	a.metric.crlNumber.Set(float64(crl.Number))
	a.metric.crlEntries.Set(float64(len(crl.Entries)))
	a.state.Store(s)
}
