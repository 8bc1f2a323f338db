package file_test

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/legation-io/legation/internal/ca/custody"
	"github.com/legation-io/legation/internal/ca/custody/custodytest"
	"github.com/legation-io/legation/internal/ca/custody/file"
	"github.com/legation-io/legation/internal/durable"
	"github.com/legation-io/legation/internal/fault"
	"github.com/legation-io/legation/internal/store"
	"github.com/legation-io/legation/internal/store/memory"
)

func newKEK(t *testing.T) *file.KEK {
	t.Helper()
	kek, err := file.OpenKEK(durable.OS, filepath.Join(t.TempDir(), "kek"), true)
	if err != nil {
		t.Fatal(err)
	}
	return kek
}

func newProvider(t *testing.T, s store.Store, kek *file.KEK) *file.Provider {
	t.Helper()
	p, err := file.New(file.Params{Store: s, TrustDomain: "example.org", KEK: kek})
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func TestSuite(t *testing.T) {
	custodytest.Run(t, func(t *testing.T) func() custody.Provider {
		s, kek := memory.New(), newKEK(t)
		return func() custody.Provider { return newProvider(t, s, kek) }
	})
}

// A04: secret files are 0600, their folders 0700, whatever the umask, and a
// key-encryption key that others may read is refused.
func TestA04TheKeyEncryptionKeyIsForItsOwnerAlone(t *testing.T) {
	old := syscall.Umask(0)
	defer syscall.Umask(old)
	path := filepath.Join(t.TempDir(), "data", "kek")
	made, err := file.OpenKEK(durable.OS, path, true)
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]os.FileMode{path: 0o600, filepath.Dir(path): 0o700} {
		info, err := os.Stat(name)
		if err != nil {
			t.Fatal(err)
		}
		if got := info.Mode().Perm(); got != want {
			t.Errorf("%s has mode %04o, want %04o", name, got, want)
		}
	}
	again, err := file.OpenKEK(durable.OS, path, true)
	if err != nil || again.ID() != made.ID() {
		t.Errorf("opened again: %v, %v; want the same key", again, err)
	}
	for _, mode := range []os.FileMode{0o640, 0o604, 0o620, 0o602, 0o610, 0o601, 0o666} {
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
		if _, err := file.OpenKEK(durable.OS, path, true); !fault.Is(err, fault.Denied) {
			t.Errorf("mode %04o: %v, want denied", mode, err)
		}
	}
}

func TestAKeyEncryptionKeyThatIsNoneIsRefused(t *testing.T) {
	dir := t.TempDir()
	for _, size := range []int{0, 16, 31, 33, 64} {
		path := filepath.Join(dir, fmt.Sprint(size))
		content := bytes.Repeat([]byte{7}, size)
		if err := os.WriteFile(path, content, 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := file.OpenKEK(durable.OS, path, true); !fault.Is(err, fault.Invalid) {
			t.Errorf("%d bytes: %v, want invalid", size, err)
		}
		if after, _ := os.ReadFile(path); !bytes.Equal(after, content) {
			t.Errorf("%d bytes: the file was overwritten", size)
		}
	}
	if _, err := file.OpenKEK(durable.OS, filepath.Join(dir, "absent"), false); !fault.Is(err, fault.NotFound) {
		t.Errorf("absent: %v, want not found", err)
	}
	if err := os.Mkdir(filepath.Join(dir, "folder"), 0o700); err != nil {
		t.Fatal(err)
	}
	if _, err := file.OpenKEK(durable.OS, filepath.Join(dir, "folder"), true); err == nil {
		t.Error("a folder was accepted")
	}
}

func TestAnotherKeyEncryptionKeyIsRefusedAndBothAreNamed(t *testing.T) {
	s, right, wrong := memory.New(), newKEK(t), newKEK(t)
	if _, err := newProvider(t, s, right).Create(context.Background(), "default/root", custody.ECDSAP256); err != nil {
		t.Fatal(err)
	}
	_, err := newProvider(t, s, wrong).Open(context.Background(), "default/root")
	if !fault.Is(err, fault.Invalid) || !strings.Contains(err.Error(), right.ID()) || !strings.Contains(err.Error(), wrong.ID()) {
		t.Errorf("Open = %v, want invalid, naming %s and %s", err, right.ID(), wrong.ID())
	}
}

func TestAStoreTellsWhetherItHoldsSealedKeys(t *testing.T) {
	ctx, s := context.Background(), memory.New()
	if sealed, err := file.Sealed(ctx, s, "example.org"); err != nil || sealed {
		t.Errorf("an empty store: %v, %v", sealed, err)
	}
	if _, err := newProvider(t, s, newKEK(t)).Create(ctx, "default/root", custody.ECDSAP256); err != nil {
		t.Fatal(err)
	}
	if sealed, err := file.Sealed(ctx, s, "example.org"); err != nil || !sealed {
		t.Errorf("a store with a key: %v, %v", sealed, err)
	}
}

func TestASealedKeyIsBoundToItsNameAndItsBits(t *testing.T) {
	ctx, s, kek := context.Background(), memory.New(), newKEK(t)
	p := newProvider(t, s, kek)
	if _, err := p.Create(ctx, "default/root", custody.ECDSAP256); err != nil {
		t.Fatal(err)
	}
	key := func(name string) string {
		return store.Key{TrustDomain: "example.org", Namespace: store.System, Kind: "sealed-key", Name: name}.String()
	}
	kv, err := s.Get(ctx, key("default/root"))
	if err != nil {
		t.Fatal(err)
	}
	put := func(name string, value []byte) {
		t.Helper()
		if _, err := s.Commit(ctx, store.Txn{Then: []store.Op{{Key: key(name), Value: value}}}); err != nil {
			t.Fatal(err)
		}
	}
	put("default/moved", kv.Value)
	if _, err := p.Open(ctx, "default/moved"); err == nil {
		t.Error("a sealed key opened under another name")
	}
	for i := range kv.Value {
		bad := bytes.Clone(kv.Value)
		bad[i] ^= 0x80
		put("default/root", bad)
		if _, err := p.Open(ctx, "default/root"); err == nil {
			t.Fatalf("byte %d flipped: a key opened", i)
		}
	}
}

func TestNothingPrintsAKey(t *testing.T) {
	kek := newKEK(t)
	for _, format := range []string{"%v", "%+v", "%#v", "%s", "%x", "%d"} {
		if out := fmt.Sprintf(format, kek); !strings.Contains(out, kek.ID()) || out != kek.ID() {
			t.Errorf("%s prints %q", format, out)
		}
	}
}
