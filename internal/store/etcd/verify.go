package etcd

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/server/v3/etcdserver/api/snap"
	"go.etcd.io/etcd/server/v3/storage/wal"
	"go.etcd.io/etcd/server/v3/storage/wal/walpb"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"

	"github.com/legation-io/legation/internal/store"
)

// verify refuses damaged data before etcd opens any file for writing. etcd
// itself would end the process, loop, begin a new cluster over old pages, or
// serve a flipped bit. An unfinished last write to the log is no damage: it
// was never acknowledged, and etcd cuts it off.
//
// unborn is the state of a first start that was interrupted before anything
// was committed. etcd would wait for ever for the members that its log does
// not name.
func verify(dir string) (unborn bool, err error) {
	defer func() {
		if p := recover(); p != nil { // etcd's decoders panic
			unborn, err = false, fmt.Errorf("its log cannot be decoded: %v", p)
		}
	}()
	db, logs := dbPath(dir), walDir(dir)
	hasPages, err := exists(db)
	if err != nil {
		return false, err
	}
	segments, err := filepath.Glob(filepath.Join(logs, "*.wal"))
	if err != nil {
		return false, err
	}
	hasLog := len(segments) > 0
	begun, err := exists(logs) // its folder is made before its first segment
	if err != nil {
		return false, err
	}
	var found pageFacts
	if hasPages {
		if err := matchesMark(dir); err != nil {
			return false, err
		}
		if st, err := os.Stat(db); err != nil || st.Size() == 0 && !hasLog {
			return err == nil, err // killed between making the file and writing its first page
		}
		if found, err = verifyPages(db); err != nil {
			return false, err
		}
	}
	switch {
	case !hasLog && found.index > 0:
		return false, fmt.Errorf("%s is missing although %s has data", logs, db)
	case !hasLog: // new, or the first start was interrupted
		return begun, nil
	case !hasPages:
		return false, fmt.Errorf("%s is missing although %s is there", db, logs)
	}
	return verifyLog(dir, found.index)
}

func dbPath(dir string) string { return filepath.Join(dir, "member", "snap", "db") }
func walDir(dir string) string { return filepath.Join(dir, "member", "wal") }

func exists(path string) (bool, error) {
	_, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err == nil, err
}

// pageFacts is what the log is compared with.
type pageFacts struct {
	index uint64 // of the log entry applied last
}

func verifyPages(path string) (pageFacts, error) {
	var facts pageFacts
	seen := history{}
	err := walkPages(path, func(bucket string, key, value []byte) error {
		switch {
		case bucket == "key":
			return seen.entry(key, value)
		case bucket == "meta" && string(key) == "consistent_index":
			if len(value) != 8 {
				return errors.New("the applied index is damaged")
			}
			facts.index = binary.BigEndian.Uint64(value)
		}
		return nil
	})
	return facts, err
}

// history checks the entries of etcd's history, in order, each against the
// one before it of the same key as far as that was not compacted away.
type history map[string]lastSeen

type lastSeen struct {
	created, version int64 // version 0: deleted
}

// entry: the key is revision, '_', number within the transaction, and 't' for
// a deletion.
func (h history) entry(key, value []byte) error {
	deleted := len(key) == 18 && key[17] == 't'
	if len(key) != 17 && !deleted || key[8] != '_' || binary.BigEndian.Uint64(key[9:]) >= store.MaxOps {
		return fmt.Errorf("history entry %x is damaged", key)
	}
	revision := int64(binary.BigEndian.Uint64(key))
	var kv mvccpb.KeyValue
	if err := kv.Unmarshal(value); err != nil {
		return fmt.Errorf("the value written at revision %d is damaged: %w", revision, err)
	}
	before, known := h[string(kv.Key)]
	if deleted {
		if len(kv.Key) == 0 || len(kv.Value) != 0 || known && before.version == 0 {
			return fmt.Errorf("the deletion at revision %d is damaged", revision)
		}
		h[string(kv.Key)] = lastSeen{}
		return nil
	}
	_, whole := unseal(kv.Key, kv.Value)
	first := kv.CreateRevision == revision
	switch {
	case !whole, kv.ModRevision != revision, kv.Lease != 0,
		kv.CreateRevision < 1, kv.CreateRevision > revision, kv.Version < 1, first != (kv.Version == 1),
		known && before.version == 0 && !first,
		known && before.version > 0 && (kv.CreateRevision != before.created || kv.Version != before.version+1):
		return fmt.Errorf("the value of %q written at revision %d is damaged", kv.Key, revision)
	}
	h[string(kv.Key)] = lastSeen{kv.CreateRevision, kv.Version}
	return nil
}

// verifyLog reads the log from the last usable snapshot on.
func verifyLog(dir string, applied uint64) (unborn bool, err error) {
	quiet := zap.NewNop().WithOptions(zap.WithFatalHook(zapcore.WriteThenPanic))
	snaps, err := wal.ValidSnapshotEntries(quiet, walDir(dir))
	if err != nil {
		return false, fmt.Errorf("%s: %w", walDir(dir), err)
	}
	from := walpb.Snapshot{}
	for _, s := range slices.Backward(snaps) {
		name := fmt.Sprintf("%016x-%016x.snap", s.Term, s.Index)
		if _, err := snap.Read(quiet, filepath.Join(dir, "member", "snap", name)); err == nil {
			from = walpb.Snapshot{Index: s.Index, Term: s.Term}
			break
		}
	}
	w, err := wal.OpenForRead(quiet, walDir(dir), from)
	if err != nil {
		return false, fmt.Errorf("%s: from entry %d on: %w", walDir(dir), from.Index, err)
	}
	defer w.Close()
	meta, state, entries, err := w.ReadAll()
	if err != nil {
		return false, fmt.Errorf("%s: from entry %d on: %w", walDir(dir), from.Index, err)
	}
	if len(meta) == 0 {
		return false, fmt.Errorf("%s does not say whose log it is", walDir(dir))
	}
	last := from.Index
	if n := len(entries); n > 0 {
		last = entries[n-1].Index
	}
	if applied > last || applied < from.Index {
		return false, fmt.Errorf("%s holds entries %d to %d, but entry %d is the last one applied to %s: one of them was cut short or comes from elsewhere",
			walDir(dir), from.Index, last, applied, dbPath(dir))
	}
	return last == 0 || state.Commit == 0 && applied == 0, nil
}
