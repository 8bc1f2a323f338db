//go:build unix

package folder_test

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/legation-io/legation/sdk/renewal/folder"
)

// Root may do everything with a folder of another user, who can read it.
func TestAStateOfAnotherUserIsRefused(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("only root can be given a folder of another user that it may change")
	}
	for _, of := range []string{".", "status", "secrets"} {
		state := t.TempDir()
		if err := os.MkdirAll(filepath.Join(state, of), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.Chown(filepath.Join(state, of), 65534, -1); err != nil {
			t.Fatal(err)
		}
		if _, err := folder.Open(folder.Config{Dir: t.TempDir(), State: state}); err == nil {
			t.Errorf("keys are kept in a folder %s of another user", of)
		}
	}
}
