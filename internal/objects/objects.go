// Package objects keeps small values for all replicas of one identity: what
// one of them stores, the others read. It decides what fits (keys, sizes,
// quotas) and who was first; whether a caller may act for an identity is the
// door's question. What a value means it cannot tell: those that hold keys
// come sealed.
package objects

import (
	"context"
	"encoding/binary"
	"math/rand/v2"
	"strings"
	"time"

	"github.com/legation-io/legation/internal/clock"
	"github.com/legation-io/legation/internal/fault"
	"github.com/legation-io/legation/internal/store"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// Quotas of one identity, and limits of one object (workload.proto).
const (
	MaxObjects = 1000
	MaxTotal   = 16 << 20 // bytes of all values together
	MaxValue   = 256 << 10
	MaxKey     = 512
)

const (
	kindObject = "object"
	kindUsage  = "objects-used"
	version    = 1
	// attempts to win a race for the identity's usage.
	attempts = 32
)

// Object is one stored value. Lists leave Value out.
type Object struct {
	Key      string
	Value    []byte
	Size     int
	Revision int64
	Modified time.Time
}

// Params is what an Objects needs.
type Params struct {
	Store       store.Store
	TrustDomain spiffeid.TrustDomain
	Clock       clock.Clock // nil is the machine's
}

// Objects keeps objects in the store. It holds no state, so that replicas of
// the control plane agree.
type Objects struct{ p Params }

// New returns an Objects.
func New(p Params) *Objects {
	if p.Clock == nil {
		p.Clock = clock.System
	}
	return &Objects{p}
}

// folder is the name under which an identity's objects lie. ':' is in no
// SPIFFE path (SPIFFE-ID 2.2) and in no key, so no two identities meet.
func (o *Objects) folder(id spiffeid.ID) string {
	return store.Key{TrustDomain: o.p.TrustDomain.Name(), Namespace: store.System, Kind: kindObject, Name: strings.TrimPrefix(id.Path(), "/") + ":/"}.String()
}

func (o *Objects) usageKey(id spiffeid.ID) string {
	return store.Key{TrustDomain: o.p.TrustDomain.Name(), Namespace: store.System, Kind: kindUsage, Name: strings.TrimPrefix(id.Path(), "/")}.String()
}

func (o *Objects) checkID(id spiffeid.ID) error {
	if id.IsZero() || id.TrustDomain() != o.p.TrustDomain || id.Path() == "" {
		return fault.New(fault.Denied, "%s is no identity of a workload of %s", id, o.p.TrustDomain.Name())
	}
	return nil
}

// CheckKey refuses a key that is not of [A-Za-z0-9._@*+-] segments separated
// by "/", or has a segment "." or "..".
func CheckKey(key string) error {
	if key == "" || len(key) > MaxKey {
		return fault.New(fault.Invalid, "a key of %d bytes: 1 to %d are allowed", len(key), MaxKey)
	}
	for segment := range strings.SplitSeq(key, "/") {
		if segment == "" || segment == "." || segment == ".." {
			return fault.New(fault.Invalid, "key %q: the segment %q is not allowed", key, segment)
		}
		if at := strings.IndexFunc(segment, foreign); at >= 0 {
			return fault.New(fault.Invalid, "key %q: %q is not allowed, only [A-Za-z0-9._@*+-] and /", key, segment[at])
		}
	}
	return nil
}

func foreign(c rune) bool {
	return !(c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || strings.ContainsRune("._@*+-", c))
}

// checkPrefix takes "" and the beginning of any key, whole segments or not.
func checkPrefix(prefix string) error {
	if prefix == "" {
		return nil
	}
	return CheckKey(strings.TrimSuffix(prefix, "/"))
}

// Get returns fault.NotFound when nothing is stored.
func (o *Objects) Get(ctx context.Context, id spiffeid.ID, key string) (Object, error) {
	if err := o.check(id, key); err != nil {
		return Object{}, err
	}
	return o.get(ctx, id, key)
}

func (o *Objects) check(id spiffeid.ID, key string) error {
	if err := o.checkID(id); err != nil {
		return err
	}
	return CheckKey(key)
}

func (o *Objects) get(ctx context.Context, id spiffeid.ID, key string) (Object, error) {
	kv, err := o.p.Store.Get(ctx, o.folder(id)+key)
	if fault.Is(err, fault.NotFound) {
		return Object{}, fault.New(fault.NotFound, "%s has no object %s", id, key)
	}
	if err != nil {
		return Object{}, err
	}
	return decode(key, kv)
}

func decode(key string, kv store.KV) (Object, error) {
	_, data, err := store.DecodeAs(kindObject, version, kv.Value)
	if err == nil && len(data) < 8 {
		err = fault.New(fault.Invalid, "the stored object %s is cut off", key)
	}
	if err != nil {
		return Object{}, err
	}
	return Object{
		Key: key, Value: data[8:], Size: len(data) - 8, Revision: kv.Revision,
		Modified: time.Unix(0, int64(binary.BigEndian.Uint64(data))),
	}, nil
}

// usage is what an identity has, counted in the same transactions that change
// it.
type usage struct {
	objects, bytes uint64
	revision       int64
}

func (o *Objects) usage(ctx context.Context, id spiffeid.ID) (usage, error) {
	kv, err := o.p.Store.Get(ctx, o.usageKey(id))
	if fault.Is(err, fault.NotFound) {
		return usage{}, nil
	}
	if err != nil {
		return usage{}, err
	}
	_, data, err := store.DecodeAs(kindUsage, version, kv.Value)
	if err == nil && len(data) != 16 {
		err = fault.New(fault.Invalid, "what is counted for %s is cut off", id)
	}
	if err != nil {
		return usage{}, err
	}
	return usage{binary.BigEndian.Uint64(data), binary.BigEndian.Uint64(data[8:]), kv.Revision}, nil
}

// account returns the operation that records u, and the condition that nobody
// else did meanwhile.
func (o *Objects) account(id spiffeid.ID, u usage) (store.Cond, store.Op) {
	key := o.usageKey(id)
	op := store.Op{Key: key, Delete: true}
	if u.objects > 0 {
		data := binary.BigEndian.AppendUint64(binary.BigEndian.AppendUint64(nil, u.objects), u.bytes)
		op = store.Op{Key: key, Value: store.EncodeValue(kindUsage, version, data)}
	}
	return store.Cond{Key: key, Revision: u.revision}, op
}

// Put stores a value and returns its revision. ifRevision, unless nil, is what
// the object's revision must be now, 0 that it must not exist; fault.Conflict
// when it is not. fault.Limited beyond a quota.
func (o *Objects) Put(ctx context.Context, id spiffeid.ID, key string, value []byte, ifRevision *int64) (int64, error) {
	if err := o.check(id, key); err != nil {
		return 0, err
	}
	if len(value) > MaxValue {
		return 0, fault.New(fault.Invalid, "a value of %d bytes: at most %d are kept", len(value), MaxValue)
	}
	if ifRevision != nil && *ifRevision < 0 {
		return 0, fault.New(fault.Invalid, "revision %d is negative", *ifRevision)
	}
	data := binary.BigEndian.AppendUint64(make([]byte, 0, 8+len(value)), uint64(o.p.Clock.Now().UnixNano()))
	stored := store.EncodeValue(kindObject, version, append(data, value...))
	return o.race(ctx, id, key, ifRevision, func(have Object, u usage) (store.Txn, error) {
		return o.put(id, key, stored, len(value), have, u)
	})
}

func (o *Objects) put(id spiffeid.ID, key string, stored []byte, size int, have Object, u usage) (store.Txn, error) {
	at := o.folder(id) + key
	txn := store.Txn{
		If:   []store.Cond{{Key: at, Revision: have.Revision}},
		Then: []store.Op{{Key: at, Value: stored}},
	}
	if have.Revision != 0 && have.Size == size {
		return txn, nil // nothing to count: what renews a lock races with nobody
	}
	next := usage{u.objects, u.bytes + uint64(size) - uint64(have.Size), u.revision}
	if have.Revision == 0 {
		next.objects++
	}
	if next.objects > MaxObjects {
		return txn, fault.New(fault.Limited, "%s has %d objects, its quota: delete some", id, u.objects)
	}
	// What shrinks always fits; the count may be older than the object, and is
	// then below it: the commit finds that out.
	if size > have.Size && next.bytes > MaxTotal {
		return txn, fault.New(fault.Limited, "%s has %d bytes in objects and may have %d: %d more do not fit, delete some", id, u.bytes, MaxTotal, size-have.Size)
	}
	cond, op := o.account(id, next)
	txn.If, txn.Then = append(txn.If, cond), append(txn.Then, op)
	return txn, nil
}

// Delete removes an object; fault.NotFound when there is none, fault.Conflict
// when its revision is another.
func (o *Objects) Delete(ctx context.Context, id spiffeid.ID, key string, ifRevision *int64) error {
	if err := o.check(id, key); err != nil {
		return err
	}
	if ifRevision != nil && *ifRevision <= 0 {
		return fault.New(fault.Invalid, "revision %d is none that an object has", *ifRevision)
	}
	_, err := o.race(ctx, id, key, ifRevision, func(have Object, u usage) (store.Txn, error) {
		if have.Revision == 0 {
			return store.Txn{}, fault.New(fault.NotFound, "%s has no object %s", id, key)
		}
		at := o.folder(id) + key
		cond, op := o.account(id, usage{u.objects - 1, u.bytes - uint64(have.Size), u.revision})
		return store.Txn{
			If:   []store.Cond{{Key: at, Revision: have.Revision}, cond},
			Then: []store.Op{{Key: at, Delete: true}, op},
		}, nil
	})
	return err
}

// race reads what is there, asks plan what to do about it and commits that;
// again when another was quicker, unless that breaks the caller's condition.
func (o *Objects) race(ctx context.Context, id spiffeid.ID, key string, ifRevision *int64, plan func(Object, usage) (store.Txn, error)) (int64, error) {
	for attempt := 1; ; attempt++ {
		u, err := o.usage(ctx, id)
		if err != nil {
			return 0, err
		}
		have, err := o.get(ctx, id, key)
		if err != nil && !fault.Is(err, fault.NotFound) {
			return 0, err
		}
		if ifRevision != nil && have.Revision != *ifRevision {
			if have.Revision == 0 {
				return 0, fault.New(fault.Conflict, "%s has no object %s; it was expected at revision %d", id, key, *ifRevision)
			}
			return 0, fault.New(fault.Conflict, "the object %s of %s is at revision %d; it was expected at %d", key, id, have.Revision, *ifRevision)
		}
		txn, err := plan(have, u)
		if err != nil {
			return 0, err
		}
		revision, err := o.p.Store.Commit(ctx, txn)
		if !fault.Is(err, fault.Conflict) {
			return revision, err
		}
		if attempt == attempts {
			return 0, fault.New(fault.Unavailable, "the objects of %s are changed too often to take part: try again", id)
		}
		timer := time.NewTimer(time.Duration(rand.Int64N(int64(min(attempt, 10)) * int64(time.Millisecond))))
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return 0, ctx.Err()
		}
	}
}

// List returns the objects whose key begins with prefix, in key order, without
// their values.
func (o *Objects) List(ctx context.Context, id spiffeid.ID, prefix string) ([]Object, error) {
	if err := o.checkID(id); err != nil {
		return nil, err
	}
	if err := checkPrefix(prefix); err != nil {
		return nil, err
	}
	folder := o.folder(id)
	kvs, _, err := o.p.Store.List(ctx, folder+prefix)
	if err != nil {
		return nil, err
	}
	list := make([]Object, 0, len(kvs))
	for _, kv := range kvs {
		object, err := decode(strings.TrimPrefix(kv.Key, folder), kv)
		if err != nil {
			return nil, err
		}
		object.Value = nil
		list = append(list, object)
	}
	return list, nil
}
