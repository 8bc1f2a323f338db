package policy

import (
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// What is made in a folder while it is only about to be watched is no event.
func TestAFolderIsWatchedThoughItWasMadeBesideTheWatcher(t *testing.T) {
	dir := t.TempDir()
	sub := filepath.Join(dir, "sub")
	asked := 0
	folders := func() []string {
		found := Directory{Path: dir}.folders()
		if asked++; asked == 1 { // seen by nobody: dir is not watched yet
			if err := os.Mkdir(sub, 0o700); err != nil {
				t.Error(err)
			}
		}
		return found
	}
	looked, done := make(chan struct{}, 1), make(chan struct{})
	ctx, cancel := context.WithCancel(t.Context())
	defer func() { cancel(); <-done }()
	go func() {
		defer close(done)
		follow(ctx, slog.New(slog.DiscardHandler), time.Hour, folders, func() {
			select {
			case looked <- struct{}{}:
			default:
			}
		})
	}()
	<-looked
	if err := os.WriteFile(filepath.Join(sub, "p.rego"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	select {
	case <-looked:
	case <-time.After(time.Minute):
		t.Error("a file in it is not seen")
	}
}
