package server

import (
	"context"
	"path/filepath"

	"github.com/legation-io/legation/internal/fault"
	"github.com/legation-io/legation/internal/store"
	"github.com/legation-io/legation/internal/store/etcd"
	"github.com/legation-io/legation/internal/version"
)

// format is how this build writes data. A change of layout raises Version
// and adds a migration.
var format = store.Format{Version: 1, MinReader: 1, WrittenBy: "legation " + version.Version}

// migrations bring older data here, one format at a time.
var migrations []store.Migration

// openFormat refuses newer data, and migrates older data after a snapshot
// beside it.
func openFormat(ctx context.Context, s *etcd.Store, dataDir string) error {
	return store.OpenFormat(ctx, s, format, migrations, func(ctx context.Context) (string, error) {
		path := filepath.Join(dataDir, "before-migration.snapshot")
		return path, s.Snapshot(ctx, path)
	})
}

// trustDomainKey holds the name of the trust domain that the data is of.
const trustDomainKey = "/legation/trust-domain"

// openTrustDomain refuses data of another trust domain: a mistyped name would
// otherwise begin a second authority beside the first.
func openTrustDomain(ctx context.Context, s store.Store, name string) error {
	kv, err := s.Get(ctx, trustDomainKey)
	if fault.Is(err, fault.NotFound) {
		_, err = s.Commit(ctx, store.Txn{If: []store.Cond{{Key: trustDomainKey}}, Then: []store.Op{{Key: trustDomainKey, Value: []byte(name)}}})
		if !fault.Is(err, fault.Conflict) {
			return err
		}
		kv, err = s.Get(ctx, trustDomainKey) // another replica was first
	}
	if err != nil {
		return err
	}
	if string(kv.Value) != name {
		return fault.New(fault.Invalid, "trustDomain: the data here is of %s, not %s, and a trust domain cannot be renamed; give another dataDir, or trustDomain: %s", kv.Value, name, kv.Value)
	}
	return nil
}
