package sealed

import (
	"bytes"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/legation-io/legation/internal/durable"
	"github.com/legation-io/legation/internal/fault"
)

func open(t testing.TB, dir string) *Box {
	t.Helper()
	b, err := Open(durable.OS, dir)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestWhatIsWrittenIsReadAfterARestart(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "cache")
	secret := []byte("canary-7f3a")
	if err := open(t, dir).Write("svids", secret); err != nil {
		t.Fatal(err)
	}
	raw, err := os.ReadFile(filepath.Join(dir, "svids.sealed"))
	if err != nil {
		t.Fatal(err)
	}
	if bytes.Contains(raw, secret) {
		t.Error("the secret lies on disk in clear")
	}
	b := open(t, dir)
	got, err := b.Read("svids")
	if err != nil || !bytes.Equal(got, secret) {
		t.Errorf("read %q, %v", got, err)
	}
	if err := b.Remove("svids"); err != nil {
		t.Fatal(err)
	}
	if _, err := b.Read("svids"); !fault.Is(err, fault.NotFound) {
		t.Errorf("a removed file: %v", err)
	}
}

func TestDamagedOrForeignIsRefused(t *testing.T) {
	b := open(t, t.TempDir())
	good := b.Seal("svids", []byte("secret"))
	change := func(i int) []byte {
		c := bytes.Clone(good)
		c[i] ^= 1
		return c
	}
	tests := map[string]struct {
		name string
		raw  []byte
	}{
		"an empty file":                  {"svids", nil},
		"a file cut in its header":       {"svids", good[:head-1]},
		"a file cut in its body":         {"svids", good[:len(good)-1]},
		"a file that is something else":  {"svids", bytes.Repeat([]byte("x"), 100)},
		"a newer version":                {"svids", change(len(magic))},
		"a changed key id":               {"svids", change(len(magic) + 1)},
		"a changed nonce":                {"svids", change(head)},
		"a changed body":                 {"svids", change(len(good) - 1)},
		"a file moved to another name":   {"view", good},
		"a file sealed with another key": {"svids", open(t, t.TempDir()).Seal("svids", []byte("secret"))},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			if _, err := b.Unseal(test.name, test.raw); !fault.Is(err, fault.Invalid) {
				t.Errorf("got %v, want fault.Invalid", err)
			}
		})
	}
}

func TestANameCannotLeaveTheFolder(t *testing.T) {
	b := open(t, t.TempDir())
	for _, name := range []string{"", ".", "..", "../x", "a/b", ".hidden", "a\x00b"} {
		if err := b.Write(name, nil); !fault.Is(err, fault.Invalid) {
			t.Errorf("name %q: %v", name, err)
		}
	}
}

func TestABadKeyFileIsNotOverwritten(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, KeyFile)
	if err := os.WriteFile(path, []byte("short"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(durable.OS, dir); !fault.Is(err, fault.Invalid) {
		t.Errorf("got %v", err)
	}
	if raw, _ := os.ReadFile(path); string(raw) != "short" {
		t.Error("the key file was overwritten")
	}
}

func TestA04SecretFilesAre0600UnderAnyUmask(t *testing.T) {
	old := syscall.Umask(0)
	defer syscall.Umask(old)
	dir := filepath.Join(t.TempDir(), "box")
	if err := open(t, dir).Write("svids", []byte("x")); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]os.FileMode{
		dir:                                0o700 | os.ModeDir,
		filepath.Join(dir, KeyFile):        0o600,
		filepath.Join(dir, "svids.sealed"): 0o600,
	} {
		st, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		if st.Mode() != want {
			t.Errorf("%s has mode %v, want %v", path, st.Mode(), want)
		}
	}
}

func FuzzUnseal(f *testing.F) {
	b := open(f, f.TempDir())
	f.Add("svids", b.Seal("svids", []byte("secret")))
	f.Add("svids", []byte(magic))
	f.Fuzz(func(t *testing.T, name string, raw []byte) {
		if plain, err := b.Unseal(name, raw); err == nil && !(name == "svids" && string(plain) == "secret") {
			t.Errorf("opened what was never sealed: %q", plain)
		}
	})
}
