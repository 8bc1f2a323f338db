// Package jointoken admits a node that shows a secret an administrator made
// for it: 256 random bits, printed once, kept as a hash, good once and for a
// short time.
package jointoken

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base32"
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"github.com/legation-io/legation/internal/attest/node"
	"github.com/legation-io/legation/internal/clock"
	"github.com/legation-io/legation/internal/fault"
	"github.com/legation-io/legation/internal/store"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// Kind is the kind of a token's key in the store, in namespace store.System.
const Kind = "token"

// Limits on tokens.
const (
	DefaultTTL         = 10 * time.Minute
	MaxTTL             = 7 * 24 * time.Hour
	DefaultOutstanding = 1000
	recordVersion      = 1
	maxTokenLength     = 512
	lockName           = "create-lock"
	keepSpent          = 24 * time.Hour
)

// Params is what a Tokens needs.
type Params struct {
	Store       store.Store
	TrustDomain spiffeid.TrustDomain
	Clock       clock.Clock
	// Outstanding is how many unused, unexpired tokens one creator may have;
	// 0 is DefaultOutstanding.
	Outstanding int
}

// Tokens makes join tokens, and is the Attestor that takes them.
type Tokens struct {
	p Params
}

// New returns the tokens of one trust domain.
func New(p Params) *Tokens {
	if p.Clock == nil {
		p.Clock = clock.System
	}
	if p.Outstanding <= 0 {
		p.Outstanding = DefaultOutstanding
	}
	return &Tokens{p: p}
}

// record is a token as stored: never the token itself.
type record struct {
	Node      string    `json:"node"`
	Hash      []byte    `json:"hash"` // SHA-256 over the whole token
	CreatedBy string    `json:"createdBy"`
	CreatedAt time.Time `json:"createdAt"`
	ExpiresAt time.Time `json:"expiresAt"`
	SpentAt   time.Time `json:"spentAt,omitzero"`
	SpentFrom string    `json:"spentFrom,omitempty"`
	// Void says why a token that was never used is no longer good.
	Void string `json:"void,omitempty"`
}

func (r record) outstanding(now time.Time) bool {
	return r.SpentAt.IsZero() && r.Void == "" && now.Before(r.ExpiresAt)
}

var encoding = base32.NewEncoding("abcdefghijklmnopqrstuvwxyz234567").WithPadding(base32.NoPadding)

func hashOf(token string) []byte {
	sum := sha256.Sum256([]byte("legation-join-token-v1\n" + token))
	return sum[:]
}

func (t *Tokens) prefix() string {
	return store.Prefix + t.p.TrustDomain.Name() + "/" + store.System + "/" + Kind + "/"
}

func (t *Tokens) key(name string) string {
	return store.Key{TrustDomain: t.p.TrustDomain.Name(), Namespace: store.System, Kind: Kind, Name: name}.String()
}

// Request asks for a token.
type Request struct {
	// Node the token admits.
	Node string
	// TTL is how long it may be used; 0 is DefaultTTL, at most MaxTTL.
	TTL time.Duration
	// Actor is who asks; limits count per actor.
	Actor string
}

// Create makes a token, "<node>.<id>.<secret>", and returns it and when it
// expires. It can never be shown again. Errors: fault.Invalid, fault.Limited.
func (t *Tokens) Create(ctx context.Context, req Request) (token string, expires time.Time, err error) {
	if err := node.ValidateName(req.Node); err != nil {
		return "", time.Time{}, err
	}
	if req.TTL == 0 {
		req.TTL = DefaultTTL
	}
	if req.TTL < time.Second || req.TTL > MaxTTL {
		return "", time.Time{}, fault.New(fault.Invalid, "token lifetime %s: from 1s to %s are allowed", req.TTL, MaxTTL)
	}
	var random [8 + 32]byte
	if _, err := rand.Read(random[:]); err != nil {
		return "", time.Time{}, fmt.Errorf("make a join token: %w", err)
	}
	id := encoding.EncodeToString(random[:8])
	token = req.Node + "." + id + "." + encoding.EncodeToString(random[8:])
	now := t.p.Clock.Now().UTC()
	rec := record{Node: req.Node, Hash: hashOf(token), CreatedBy: req.Actor,
		CreatedAt: now, ExpiresAt: now.Add(req.TTL)}
	if err := t.insert(ctx, id, rec); err != nil {
		return "", time.Time{}, fmt.Errorf("make a join token for node %s: %w", req.Node, err)
	}
	return token, rec.ExpiresAt, nil
}

// insert writes the record if its creator has room. Creators on all replicas
// take turns by the lock's revision, so that the limit is exact; what is
// long over is swept in the same transaction.
func (t *Tokens) insert(ctx context.Context, id string, rec record) error {
	value, err := encode(rec)
	if err != nil {
		return err
	}
	lock := t.key(lockName)
	for range 64 {
		kvs, _, err := t.p.Store.List(ctx, t.prefix())
		if err != nil {
			return err
		}
		txn := store.Txn{
			If: []store.Cond{{Key: lock}, {Key: t.key(id)}},
			Then: []store.Op{
				{Key: lock, Value: store.EncodeValue("token-lock", 1, nil)},
				{Key: t.key(id), Value: value},
			},
		}
		outstanding := 0
		for _, kv := range kvs {
			if kv.Key == lock {
				txn.If[0].Revision = kv.Revision
				continue
			}
			old, err := decode(kv)
			switch {
			case err != nil:
				return err
			case old.outstanding(rec.CreatedAt):
				if old.CreatedBy == rec.CreatedBy {
					outstanding++
				}
			case rec.CreatedAt.Sub(old.ExpiresAt) > keepSpent && len(txn.Then) < 64:
				txn.If = append(txn.If, store.Cond{Key: kv.Key, Revision: kv.Revision})
				txn.Then = append(txn.Then, store.Op{Key: kv.Key, Delete: true})
			}
		}
		if outstanding >= t.p.Outstanding {
			return fault.New(fault.Limited, "%s has %d unused join tokens, the most allowed; use them or wait until they expire", rec.CreatedBy, outstanding)
		}
		_, err = t.p.Store.Commit(ctx, txn)
		if !fault.Is(err, fault.Conflict) {
			return err
		}
	}
	return fault.New(fault.Unavailable, "many tokens are being made at once; try again")
}

func decode(kv store.KV) (record, error) {
	var rec record
	_, data, err := store.DecodeAs(Kind, recordVersion, kv.Value)
	if err == nil {
		err = json.Unmarshal(data, &rec)
	}
	if err != nil {
		return record{}, fmt.Errorf("read join token record %s: %w", kv.Key, err)
	}
	return rec, nil
}

func encode(rec record) ([]byte, error) {
	data, err := json.Marshal(rec)
	if err != nil {
		return nil, err
	}
	return store.EncodeValue(Kind, recordVersion, data), nil
}

// Method names the method.
func (t *Tokens) Method() string { return node.JoinToken }

// Attest judges a token. All refusals of an unknown token read the same, so
// that nobody learns which part of a guess was right.
func (t *Tokens) Attest(ctx context.Context, attempt node.Attempt) (node.Claim, error) {
	token := string(attempt.Payload)
	name, id, ok := split(token)
	if !ok {
		return node.Claim{}, fault.New(fault.Denied, "this is not a join token; make one with: legation token create --node NAME")
	}
	kv, err := t.p.Store.Get(ctx, t.key(id))
	if err != nil && !fault.Is(err, fault.NotFound) {
		return node.Claim{}, fmt.Errorf("look up a join token: %w", err)
	}
	rec := record{Hash: make([]byte, sha256.Size)}
	known := err == nil
	if known {
		if rec, err = decode(kv); err != nil {
			return node.Claim{}, err
		}
	}
	// One comparison of hashes in constant time, whether or not there is such
	// a token; the hash is over the whole text, so it binds the node's name.
	if subtle.ConstantTimeCompare(rec.Hash, hashOf(token)) != 1 || !known || rec.Node != name {
		return node.Claim{}, fault.New(fault.Denied, "the join token is not known; make one with: legation token create --node NAME")
	}
	now := t.p.Clock.Now().UTC()
	switch {
	case !rec.SpentAt.IsZero():
		return node.Claim{}, fault.New(fault.Denied, "the join token for node %s was used at %s; each is good once: legation token create --node %s", name, rec.SpentAt.Format(time.RFC3339), name)
	case rec.Void != "":
		return node.Claim{}, fault.New(fault.Denied, "the join token for node %s was withdrawn (%s): legation token create --node %s", name, rec.Void, name)
	case !now.Before(rec.ExpiresAt):
		return node.Claim{}, fault.New(fault.Denied, "the join token for node %s expired at %s: legation token create --node %s", name, rec.ExpiresAt.Format(time.RFC3339), name)
	}
	rec.SpentAt = now
	if attempt.Peer.IsValid() {
		rec.SpentFrom = attempt.Peer.String()
	}
	value, err := encode(rec)
	if err != nil {
		return node.Claim{}, fmt.Errorf("spend a join token: %w", err)
	}
	return node.Claim{Node: name, Spend: []node.Spend{{Key: kv.Key, Revision: kv.Revision, Value: value}}}, nil
}

// split takes "<node>.<id>.<secret>" apart; node names may have dots.
func split(token string) (name, id string, ok bool) {
	if len(token) > maxTokenLength {
		return "", "", false
	}
	i := strings.LastIndexByte(token, '.')
	if i < 0 {
		return "", "", false
	}
	j := strings.LastIndexByte(token[:i], '.')
	if j < 0 {
		return "", "", false
	}
	name, id = token[:j], token[j+1:i]
	raw, err := encoding.DecodeString(id)
	if err != nil || len(raw) != 8 || node.ValidateName(name) != nil {
		return "", "", false
	}
	return name, id, true
}

// VoidAll withdraws every unused token, for instance after a backup was
// restored in which spent tokens are unspent again. It returns how many.
func (t *Tokens) VoidAll(ctx context.Context, why string) (int, error) {
	kvs, _, err := t.p.Store.List(ctx, t.prefix())
	if err != nil {
		return 0, fmt.Errorf("withdraw join tokens: %w", err)
	}
	n := 0
	for _, kv := range kvs {
		if kv.Key == t.key(lockName) {
			continue
		}
		rec, err := decode(kv)
		if err != nil {
			return n, err
		}
		if !rec.outstanding(t.p.Clock.Now()) {
			continue
		}
		rec.Void = why
		value, err := encode(rec)
		if err != nil {
			return n, err
		}
		_, err = t.p.Store.Commit(ctx, store.Txn{
			If:   []store.Cond{{Key: kv.Key, Revision: kv.Revision}},
			Then: []store.Op{{Key: kv.Key, Value: value}},
		})
		if fault.Is(err, fault.Conflict) {
			continue // spent at this instant
		}
		if err != nil {
			return n, fmt.Errorf("withdraw join tokens: %w", err)
		}
		n++
	}
	return n, nil
}
