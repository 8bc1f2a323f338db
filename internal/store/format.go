package store

import (
	"context"
	"encoding/json"
	"fmt"

	"github.com/legation-io/legation/internal/fault"
)

// Format says how a program writes data.
type Format struct {
	// Version of the layout this program writes.
	Version int
	// MinReader is the oldest version whose programs may read and write what
	// this one writes; at most Version. While it is lower, replicas of both
	// versions can share the data.
	MinReader int
	// WrittenBy names the program, e.g. "legation 0.3.1", for people.
	WrittenBy string
}

// Migration brings data from format version From to From+1.
type Migration struct {
	From int
	Name string // what it does, for the log and for errors
	// Run may be stopped at any instant and is then run again from its
	// beginning: it has to recognise what it did already. Rewrite does.
	Run func(ctx context.Context, s Store) error
}

// formatRecord is what FormatKey holds: JSON, so that people can read it
// with anything.
type formatRecord struct {
	Version   int    `json:"version"`
	MinReader int    `json:"minReader"`
	WrittenBy string `json:"writtenBy"`
	// MigratingTo and Snapshot are set while a migration is under way.
	MigratingTo int    `json:"migratingTo,omitempty"`
	Snapshot    string `json:"snapshot,omitempty"`
}

const (
	formatKind    = "legation/format"
	formatVersion = 1
)

// OpenFormat makes sure that the data in s can be read and written by a
// program of format f, before anything else touches it:
//
//   - an empty store gets a format record;
//   - the same version, or a newer one that admits f.Version, is left alone;
//   - a newer one that does not, and data without a record, are refused with
//     fault.Invalid, and nothing is written;
//   - an older one is migrated: snapshot is called once, then each migration
//     in turn. A crash in between is resumed by the next OpenFormat, with the
//     snapshot of the first.
//
// snapshot returns where it put a copy of all data. It may be nil when there
// are no migrations.
func OpenFormat(ctx context.Context, s Store, f Format, migrations []Migration, snapshot func(ctx context.Context) (path string, err error)) error {
	if f.Version < 1 || f.MinReader > f.Version || f.WrittenBy == "" {
		return fault.New(fault.Invalid, "format %+v: want a version of at least 1, a minimum reader of at most that, and a writer", f)
	}
	rec, revision, err := readFormat(ctx, s)
	if fault.Is(err, fault.NotFound) {
		return initFormat(ctx, s, f)
	}
	if err != nil {
		return err
	}
	if rec.MinReader > f.Version {
		doing := "was written"
		if rec.MigratingTo > f.Version {
			doing = "is being migrated"
		}
		return fault.New(fault.Invalid,
			"the data %s by %s in format %d, which programs of format %d and later can read; this is %s with format %d: start the newer program; nothing was changed",
			doing, rec.WrittenBy, max(rec.Version, rec.MigratingTo), rec.MinReader, f.WrittenBy, f.Version)
	}
	if rec.Version >= f.Version && rec.MigratingTo == 0 {
		return nil
	}
	return migrate(ctx, s, f, rec, revision, migrations, snapshot)
}

func initFormat(ctx context.Context, s Store, f Format) error {
	kvs, _, err := s.List(ctx, "/legation/")
	if err != nil {
		return fmt.Errorf("look for data: %w", err)
	}
	if len(kvs) > 0 {
		return fault.New(fault.Invalid,
			"the store holds data (%s and %d more) but no format record at %s: it was not written by legation, or is damaged: restore a snapshot; nothing was changed",
			kvs[0].Key, len(kvs)-1, FormatKey)
	}
	_, err = writeFormat(ctx, s, 0, formatRecord{Version: f.Version, MinReader: f.MinReader, WrittenBy: f.WrittenBy})
	if fault.Is(err, fault.Conflict) { // another replica was faster: is its format ours?
		return OpenFormat(ctx, s, f, nil, nil)
	}
	return err
}

func migrate(ctx context.Context, s Store, f Format, rec formatRecord, revision int64, migrations []Migration, snapshot func(context.Context) (string, error)) error {
	steps, err := plan(rec.Version, f.Version, migrations)
	if err != nil {
		return err
	}
	if rec.MigratingTo == 0 { // else the snapshot of the first try is the one to keep
		if snapshot == nil {
			return fault.New(fault.Internal, "migrate the data from format %d to %d: no way to take a snapshot first was given", rec.Version, f.Version)
		}
		path, err := snapshot(ctx)
		if err != nil {
			return fmt.Errorf("take a snapshot before migrating from format %d to %d: %w; nothing was changed", rec.Version, f.Version, err)
		}
		rec.Snapshot = path
	}
	// From here on older programs must stay away, whatever they tolerate.
	rec.MigratingTo, rec.MinReader, rec.WrittenBy = f.Version, f.Version, f.WrittenBy
	if revision, err = writeFormat(ctx, s, revision, rec); err != nil {
		return fmt.Errorf("begin to migrate: %w", err)
	}
	for _, m := range steps {
		if err := m.Run(ctx, s); err != nil {
			return fmt.Errorf("migrate the data from format %d to %d (%s): %w; start again to resume, or restore the snapshot %s", m.From, m.From+1, m.Name, err, rec.Snapshot)
		}
		rec.Version = m.From + 1
		if revision, err = writeFormat(ctx, s, revision, rec); err != nil {
			return fmt.Errorf("record that the data is in format %d: %w", rec.Version, err)
		}
	}
	rec = formatRecord{Version: f.Version, MinReader: f.MinReader, WrittenBy: f.WrittenBy}
	if _, err = writeFormat(ctx, s, revision, rec); err != nil {
		return fmt.Errorf("finish migrating: %w", err)
	}
	return nil
}

// plan picks one migration for each step before anything is touched.
func plan(from, to int, migrations []Migration) ([]Migration, error) {
	var steps []Migration
	for v := from; v < to; v++ {
		found := false
		for _, m := range migrations {
			if m.From == v && !found {
				steps, found = append(steps, m), true
			}
		}
		if !found {
			return nil, fault.New(fault.Invalid,
				"the data is in format %d and this program writes format %d, but knows no way from %d to %d: migrate with an older release first; nothing was changed", from, to, v, v+1)
		}
	}
	return steps, nil
}

func readFormat(ctx context.Context, s Store) (formatRecord, int64, error) {
	kv, err := s.Get(ctx, FormatKey)
	if err != nil {
		return formatRecord{}, 0, fmt.Errorf("read the format record: %w", err)
	}
	var rec formatRecord
	_, data, err := DecodeAs(formatKind, formatVersion, kv.Value)
	if err == nil {
		err = json.Unmarshal(data, &rec) // fields that a newer program added are let pass
	}
	if err != nil {
		return formatRecord{}, 0, fault.New(fault.Invalid, "the format record at %s cannot be read: %w; restore a snapshot; nothing was changed", FormatKey, err)
	}
	return rec, kv.Revision, nil
}

// writeFormat replaces the record that was read at a revision.
func writeFormat(ctx context.Context, s Store, revision int64, rec formatRecord) (int64, error) {
	data, err := json.Marshal(rec)
	if err != nil {
		return 0, err
	}
	return s.Commit(ctx, Txn{
		If:   []Cond{{Key: FormatKey, Revision: revision}},
		Then: []Op{{Key: FormatKey, Value: EncodeValue(formatKind, formatVersion, data)}},
	})
}

// Rewrite passes every value under a prefix through change, which returns
// what takes its place, or keep to leave it alone. It commits in pieces, each
// on condition that the values are as they were read; run again after a
// crash, it goes on where it stopped if change keeps what it changed before.
func Rewrite(ctx context.Context, s Store, prefix string, change func(kv KV) (op Op, keep bool, err error)) error {
	const pieceOps, pieceBytes = 256, 1 << 20
	kvs, _, err := s.List(ctx, prefix)
	if err != nil {
		return err
	}
	var txn Txn
	size := 0
	flush := func() error {
		if len(txn.Then) == 0 {
			return nil
		}
		_, err := s.Commit(ctx, txn)
		txn, size = Txn{}, 0
		return err
	}
	for _, kv := range kvs {
		op, keep, err := change(kv)
		if err != nil {
			return fmt.Errorf("rewrite %s: %w", kv.Key, err)
		}
		if keep {
			continue
		}
		if size > 0 && (len(txn.Then)+2 > pieceOps || size+len(op.Value) > pieceBytes) {
			if err := flush(); err != nil {
				return err
			}
		}
		txn.If = append(txn.If, Cond{Key: kv.Key, Revision: kv.Revision})
		txn.Then = append(txn.Then, op)
		if op.Key != kv.Key { // renamed
			txn.Then = append(txn.Then, Op{Key: kv.Key, Delete: true})
		}
		size += len(op.Key) + len(op.Value) + 1
	}
	return flush()
}
