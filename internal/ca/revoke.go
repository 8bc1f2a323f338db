package ca

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"slices"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	nodev1 "github.com/legation-io/legation/api/node/v1"
	"github.com/legation-io/legation/internal/fault"
	"github.com/legation-io/legation/internal/ledger"
	"github.com/legation-io/legation/internal/store"
)

// change is what one step adds to the CRL, and the revocation that says so.
type change struct {
	entries    []crlEntry
	revocation *revocationObject // nil: only the CRL changes
	revision   int64             // of the revocation's key, 0: new
}

// planner looks at what is known and says what to change; a nil change with a
// nil error: nothing is left to do. It is asked again after each lost race.
type planner func(k *known, now time.Time) (*change, error)

// Revoke takes a serial, an identity or a node away: the next signed CRL and
// the revocation are stored in one transaction. An identity or a node stays
// blocked until Lift. What is revoked already is answered again. A serial of
// which the journal knows nothing is fault.NotFound. When Revoke returns, no
// certificate of the identity or node is left out, by any replica.
func (a *Authority) Revoke(ctx context.Context, req RevokeRequest) (*nodev1.Revocation, error) {
	by, err := a.checkRevoke(req)
	if err != nil {
		return nil, err
	}
	var id string
	if by == "serial" {
		id, err = a.revokeSerial(ctx, req)
	} else {
		id, err = a.revokeSubject(ctx, req)
	}
	if err != nil {
		return nil, fmt.Errorf("revoke %s: %w", revokeTarget(req), err)
	}
	a.metric.revocations.WithLabelValues(by).Inc()
	if r := a.state.Get().Revocations[id]; r != nil {
		return r, nil
	}
	return nil, fault.New(fault.Conflict, "revoke %s: the revocation was removed while it was made; try again", revokeTarget(req))
}

func revokeTarget(req RevokeRequest) string {
	switch {
	case req.Serial != "":
		return "serial " + req.Serial
	case req.Node != "":
		return "node " + req.Node
	}
	return req.ID.String()
}

func (a *Authority) checkRevoke(req RevokeRequest) (by string, err error) {
	named := 0
	for _, n := range []struct {
		given bool
		by    string
	}{{req.Serial != "", "serial"}, {!req.ID.IsZero(), "spiffe_id"}, {req.Node != "", "node"}} {
		if n.given {
			named++
			by = n.by
		}
	}
	if named != 1 {
		return "", fault.New(fault.Invalid, "revoke: name exactly one of a serial, a SPIFFE ID and a node, not %d", named)
	}
	if !req.ID.IsZero() && req.ID.TrustDomain() != a.td {
		return "", fault.New(fault.Invalid, "revoke: %s is of another trust domain; this authority revokes what it signed, for %s", req.ID, a.td.Name())
	}
	return by, nil
}

// find looks a serial up here, then in what other replicas recorded.
func (a *Authority) find(ctx context.Context, serial string) (ledger.Record, error) {
	r, err := a.journal.BySerial(serial)
	if fault.Is(err, fault.NotFound) {
		if err := a.journal.Sync(ctx); err != nil {
			return r, err
		}
		r, err = a.journal.BySerial(serial)
	}
	if err == nil && r.Kind == ledger.KindJWT {
		return r, fault.New(fault.Invalid, "%s is a JWT-SVID, which no CRL can name; it ends by itself at %s: revoke its identity %s", serial, r.NotAfter.UTC().Format(time.RFC3339), r.SPIFFEID)
	}
	return r, err
}

func (a *Authority) revokeSerial(ctx context.Context, req RevokeRequest) (id string, err error) {
	record, err := a.find(ctx, req.Serial)
	if err != nil {
		return "", err
	}
	id = newRevocationID()
	return id, a.change(ctx, func(k *known, now time.Time) (*change, error) {
		revoked := slices.ContainsFunc(k.crl.Entries, func(e crlEntry) bool { return e.Serial == req.Serial })
		if revoked {
			for have, r := range k.revocations {
				if r.revocationObject != nil && slices.Contains(r.Serials, req.Serial) {
					id = have
					return nil, nil
				}
			}
			// Superseded before: the CRL has it, now a revocation says so too.
		}
		c := &change{revocation: a.newRevocation(id, req, now)}
		c.revocation.Serials = []string{req.Serial}
		if !revoked {
			c.entries = []crlEntry{entryOf(&record, now, reasonUnspecified)}
		}
		return c, nil
	})
}

// revokeSubject revokes an identity or a node. The first step blocks it, so
// that from its commit on no replica can record another certificate; the
// second, mostly empty, adds what was recorded while the first was on its way.
func (a *Authority) revokeSubject(ctx context.Context, req RevokeRequest) (id string, err error) {
	if err := a.journal.Sync(ctx); err != nil {
		return "", err
	}
	if a.state.Get().blocks(spiffeIDText(req.ID), req.Node) != nil {
		// Another replica may just have lifted it: that must not be taken for
		// "blocked already".
		if err := a.reload(ctx); err != nil {
			return "", err
		}
	}
	id = newRevocationID()
	plan := func(k *known, now time.Time) (*change, error) {
		for have, r := range k.revocations {
			if r.revocationObject != nil && r.Blocks && r.Node == req.Node && r.SPIFFEID == spiffeIDText(req.ID) {
				id = have
				return a.extend(k, r, now), nil
			}
		}
		c := &change{revocation: a.newRevocation(id, req, now)}
		c.revocation.Blocks = true
		c.add(a.missing(k, c.revocation, now))
		return c, nil
	}
	if err := a.change(ctx, plan); err != nil {
		return "", err
	}
	a.failpoint("revoke:blocked")
	return id, a.sweep(ctx, id)
}

// sweep adds to a blocking revocation what was recorded before it and not
// seen by who made it.
func (a *Authority) sweep(ctx context.Context, id string) error {
	if err := a.journal.Sync(ctx); err != nil {
		return err
	}
	return a.change(ctx, func(k *known, now time.Time) (*change, error) {
		r := k.revocations[id]
		if r.revocationObject == nil || !r.Blocks {
			return nil, nil
		}
		return a.extend(k, r, now), nil
	})
}

// extend is nil when nothing is missing.
func (a *Authority) extend(k *known, r knownRevocation, now time.Time) *change {
	missing := a.missing(k, r.revocationObject, now)
	if len(missing) == 0 {
		return nil
	}
	copied := *r.revocationObject
	copied.Serials = slices.Clone(copied.Serials)
	c := &change{revocation: &copied, revision: r.revision}
	c.add(missing)
	return c
}

func (c *change) add(entries []crlEntry) {
	c.entries = append(c.entries, entries...)
	for _, e := range entries {
		c.revocation.Serials = append(c.revocation.Serials, e.Serial)
	}
}

// missing lists the unexpired certificates of what a revocation names that no
// CRL has yet.
func (a *Authority) missing(k *known, r *revocationObject, now time.Time) []crlEntry {
	have := make(map[string]bool, len(k.crl.Entries))
	for _, e := range k.crl.Entries {
		have[e.Serial] = true
	}
	filters := []ledger.Filter{{SPIFFEID: r.SPIFFEID}}
	if r.Node != "" {
		agent := "spiffe://" + a.td.Name() + agentPrefix + r.Node
		filters = []ledger.Filter{{Node: r.Node}, {SPIFFEID: agent}}
	}
	var entries []crlEntry
	for _, f := range filters {
		f.Kind, f.Authority, f.ExpiresFrom = ledger.KindX509, DefaultName, now
		records, _ := a.journal.List(f)
		for i := range records {
			if e := entryOf(&records[i], now, reasonUnspecified); !have[e.Serial] {
				have[e.Serial] = true
				entries = append(entries, e)
			}
		}
	}
	return entries
}

// RevokeSuperseded puts the serial of a certificate that was re-issued into
// the CRL and returns its number. It closes no connection and blocks nothing.
func (a *Authority) RevokeSuperseded(ctx context.Context, serial string) (uint64, error) {
	record, err := a.find(ctx, serial)
	if err == nil {
		err = a.change(ctx, func(k *known, now time.Time) (*change, error) {
			if slices.ContainsFunc(k.crl.Entries, func(e crlEntry) bool { return e.Serial == serial }) {
				return nil, nil
			}
			return &change{entries: []crlEntry{entryOf(&record, now, reasonSuperseded)}}, nil
		})
	}
	if err != nil {
		return 0, fmt.Errorf("revoke superseded serial %s: %w", serial, err)
	}
	a.metric.revocations.WithLabelValues("superseded").Inc()
	return a.state.Get().CRL.Number, nil
}

// change signs the next CRL and commits it with its revocation, by
// compare-and-set on the CRL's number; whoever loses looks again.
func (a *Authority) change(ctx context.Context, plan planner) error {
	select {
	case a.revoking <- struct{}{}:
		defer func() { <-a.revoking }()
	case <-ctx.Done():
		return ctx.Err()
	}
	for range maxRaces {
		k := a.copyKnown()
		now := a.guard.Now().UTC()
		c, err := plan(&k, now)
		if err != nil || c == nil {
			return err
		}
		next, err := a.nextCRL(k.crl, c.entries, now)
		if err != nil {
			return err
		}
		txn := store.Txn{
			If:   []store.Cond{{Key: a.crlKey(), Revision: k.crlRevision}},
			Then: []store.Op{{Key: a.crlKey(), Value: next.encode()}},
		}
		if r := c.revocation; r != nil {
			r.CRLNumber = next.Number
			value, err := encodeObject(kindRevocation, r)
			if err != nil {
				return err
			}
			txn.If = append(txn.If, store.Cond{Key: a.revocationKey(r.ID), Revision: c.revision})
			txn.Then = append(txn.Then, store.Op{Key: a.revocationKey(r.ID), Value: value})
		}
		txn.Then = append(txn.Then, a.finished(&k, next)...)
		a.failpoint("crl:signed")
		err = a.commit(ctx, txn)
		a.failpoint("crl:stored")
		if !lostRace(err) {
			return err
		}
		if err := a.reload(ctx); err != nil {
			return err
		}
	}
	return fault.New(fault.Unavailable, "other replicas published CRLs in between, %d times; try again", maxRaces)
}

// finished deletes revocations that block nothing and none of whose serials
// is left in the CRL.
func (a *Authority) finished(k *known, next *crlObject) []store.Op {
	const most = 64
	have := make(map[string]bool, len(next.Entries))
	for _, e := range next.Entries {
		have[e.Serial] = true
	}
	var ops []store.Op
	for id, r := range k.revocations {
		if r.revocationObject == nil || r.Blocks || len(ops) == most || r.CRLNumber >= next.Number {
			continue
		}
		if !slices.ContainsFunc(r.Serials, func(s string) bool { return have[s] }) {
			ops = append(ops, store.Op{Key: a.revocationKey(id), Delete: true})
		}
	}
	return ops
}

// commit stores a transaction on our objects and takes it over at once.
func (a *Authority) commit(ctx context.Context, txn store.Txn) error {
	revision, err := a.store.Commit(ctx, txn)
	if err != nil {
		return err
	}
	batch := store.Batch{Revision: revision}
	for _, op := range txn.Then {
		batch.Events = append(batch.Events, store.Event{
			KV: store.KV{Key: op.Key, Value: op.Value, Revision: revision}, Deleted: op.Delete,
		})
	}
	return a.apply(batch, false)
}

// Lift ends what blocks an identity or a node; exactly one is given. Its
// revoked serials stay revoked. fault.NotFound when nothing blocks it.
func (a *Authority) Lift(ctx context.Context, id spiffeid.ID, node string) error {
	if id.IsZero() == (node == "") {
		return fault.New(fault.Invalid, "lift: name exactly one of a SPIFFE ID and a node")
	}
	target := revokeTarget(RevokeRequest{ID: id, Node: node})
	if err := a.reload(ctx); err != nil {
		return fmt.Errorf("lift %s: %w", target, err)
	}
	for range maxRaces {
		var txn store.Txn
		k := a.copyKnown()
		for key, r := range k.revocations {
			if r.revocationObject == nil || !r.Blocks || r.Node != node || r.SPIFFEID != spiffeIDText(id) {
				continue
			}
			lifted := *r.revocationObject
			lifted.Blocks, lifted.LiftedAt = false, a.guard.Now().UTC()
			value, err := encodeObject(kindRevocation, &lifted)
			if err != nil {
				return err
			}
			txn.If = append(txn.If, store.Cond{Key: a.revocationKey(key), Revision: r.revision})
			txn.Then = append(txn.Then, store.Op{Key: a.revocationKey(key), Value: value})
		}
		if len(txn.Then) == 0 {
			return fault.New(fault.NotFound, "lift: nothing blocks %s", target)
		}
		err := a.commit(ctx, txn)
		if err == nil {
			return nil
		}
		if !lostRace(err) {
			return fmt.Errorf("lift %s: %w", target, err)
		}
		if err := a.reload(ctx); err != nil {
			return err
		}
	}
	return fault.New(fault.Unavailable, "lift %s: other replicas changed it in between, %d times; try again", target, maxRaces)
}

// copyKnown is a view that stays as it is.
func (a *Authority) copyKnown() known {
	a.mu.Lock()
	defer a.mu.Unlock()
	k := a.known
	k.revocations = make(map[string]knownRevocation, len(a.known.revocations))
	for id, r := range a.known.revocations {
		k.revocations[id] = r
	}
	return k
}

func (a *Authority) newRevocation(id string, req RevokeRequest, now time.Time) *revocationObject {
	return &revocationObject{
		ID: id, Authority: DefaultName, SPIFFEID: spiffeIDText(req.ID), Node: req.Node,
		Serials: []string{}, Reason: req.Reason, Actor: req.Actor, RevokedAt: now,
	}
}

func entryOf(r *ledger.Record, now time.Time, reason int) crlEntry {
	return crlEntry{Serial: r.Serial, RevokedAt: now.UTC().Truncate(time.Second), Reason: reason, NotAfter: r.NotAfter, Key: keyTag(r.KeySHA256[:16])}
}

func spiffeIDText(id spiffeid.ID) string {
	if id.IsZero() {
		return ""
	}
	return id.String()
}

func newRevocationID() string {
	var b [8]byte
	rand.Read(b[:])
	return hex.EncodeToString(b[:])
}
