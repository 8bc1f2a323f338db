package ledger

import (
	"context"
	"encoding/json"
	"fmt"
	"regexp"

	"github.com/legation-io/legation/internal/fault"
	"github.com/legation-io/legation/internal/store"
)

// Cursor is how far one consumer (audit, transparency log) has read the
// journal, kept in the store. A segment that a cursor has not passed is not
// deleted. One goroutine uses a Cursor.
type Cursor struct {
	journal  *Journal
	name     string
	position int64 // revision of the last segment passed
	revision int64 // of the cursor's own key
}

type cursorValue struct {
	Position int64 `json:"position"`
}

var cursorName = regexp.MustCompile(`^[a-z0-9][a-z0-9.-]{0,62}$`)

func (j *Journal) cursorPrefix() string {
	return store.Prefix + j.td + "/" + store.System + "/" + kindCursor + "/"
}

// Cursor opens a consumer's cursor, and registers it, before the oldest
// segment, if it is new.
func (j *Journal) Cursor(ctx context.Context, name string) (*Cursor, error) {
	if !cursorName.MatchString(name) {
		return nil, fault.New(fault.Invalid, "cursor %q: write lower-case letters, digits, '.' and '-'", name)
	}
	c := &Cursor{journal: j, name: name}
	for range 2 {
		kv, err := j.store.Get(ctx, j.key(kindCursor, name))
		if err == nil {
			v, err := decodeCursor(kv)
			if err != nil {
				return nil, err
			}
			c.position, c.revision = v.Position, kv.Revision
			return c, nil
		}
		if !fault.Is(err, fault.NotFound) {
			return nil, fmt.Errorf("open cursor %s: %w", name, err)
		}
		if err = c.put(ctx, 0); err == nil || !fault.Is(err, fault.Conflict) {
			return c, err
		}
	}
	return nil, fault.New(fault.Conflict, "open cursor %s: another replica changes it; try again", name)
}

// Next returns up to limit segments after the cursor, in the order of their
// commits.
func (c *Cursor) Next(ctx context.Context, limit int) ([]Segment, error) {
	if err := c.journal.Sync(ctx); err != nil {
		return nil, err
	}
	all := c.journal.segmentsUntil(c.journal.readTo())
	var out []Segment
	for _, s := range all {
		if s.Revision > c.position && len(out) < limit {
			out = append(out, s)
		}
	}
	return out, nil
}

// Pass moves the cursor behind a segment, durably; fault.Conflict when
// another replica moved it.
func (c *Cursor) Pass(ctx context.Context, s Segment) error {
	if s.Revision <= c.position {
		return nil
	}
	return c.put(ctx, s.Revision)
}

// Remove unregisters the consumer: it no longer holds segments back.
func (c *Cursor) Remove(ctx context.Context) error {
	_, err := c.journal.store.Commit(ctx, store.Txn{Then: []store.Op{{Key: c.journal.key(kindCursor, c.name), Delete: true}}})
	return err
}

func (c *Cursor) put(ctx context.Context, position int64) error {
	value, err := json.Marshal(cursorValue{Position: position})
	if err != nil {
		return err
	}
	key := c.journal.key(kindCursor, c.name)
	revision, err := c.journal.store.Commit(ctx, store.Txn{
		If:   []store.Cond{{Key: key, Revision: c.revision}},
		Then: []store.Op{{Key: key, Value: store.EncodeValue(kindCursor, 1, value)}},
	})
	if err != nil {
		return fmt.Errorf("move cursor %s: %w", c.name, err)
	}
	c.position, c.revision = position, revision
	return nil
}

// passedByAll is the revision that every cursor has passed, -1 without any.
func (j *Journal) passedByAll(ctx context.Context) (int64, error) {
	kvs, _, err := j.store.List(ctx, j.cursorPrefix())
	if err != nil {
		return 0, fmt.Errorf("list cursors: %w", err)
	}
	passed := int64(-1)
	for _, kv := range kvs {
		v, err := decodeCursor(kv)
		if err != nil {
			return 0, err
		}
		if passed < 0 || v.Position < passed {
			passed = v.Position
		}
	}
	return passed, nil
}

func decodeCursor(kv store.KV) (cursorValue, error) {
	var v cursorValue
	_, data, err := store.DecodeAs(kindCursor, 1, kv.Value)
	if err == nil {
		err = json.Unmarshal(data, &v)
	}
	if err != nil {
		return v, fmt.Errorf("read cursor %s: %w", kv.Key, err)
	}
	return v, nil
}
