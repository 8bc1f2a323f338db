package server

import (
	"context"
	"path/filepath"

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
