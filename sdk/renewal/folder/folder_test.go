package folder

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/legation-io/legation/sdk/renewal"
	"github.com/legation-io/legation/sdk/renewal/storetest"
)

func open(t *testing.T, dir string, log *bytes.Buffer) *Folder {
	t.Helper()
	cfg := Config{Dir: filepath.Join(dir, "certs"), State: filepath.Join(dir, "state"), Poll: 50 * time.Millisecond}
	if log != nil {
		cfg.Logger = slog.New(slog.NewTextHandler(log, nil))
	}
	f, err := Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

func declare(t *testing.T, dir, name, content string) {
	t.Helper()
	path := filepath.Join(dir, "certs", name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
}

func yamlOf(t *testing.T, c *renewal.Certificate) string {
	t.Helper()
	raw, err := c.YAML()
	if err != nil {
		t.Fatal(err)
	}
	return string(raw)
}

func TestFolderIsAStore(t *testing.T) {
	storetest.Run(t, func(t *testing.T) storetest.Backend {
		dir := t.TempDir()
		if err := os.Mkdir(filepath.Join(dir, "certs"), 0o755); err != nil {
			t.Fatal(err)
		}
		f := open(t, dir, nil)
		return storetest.Backend{
			Store: f,
			Apply: func(c *renewal.Certificate) {
				declare(t, dir, c.Metadata.Name+".yaml", yamlOf(t, c))
				f.rescan(t.Context()) // as the watch would
			},
			Delete: func(k renewal.Key) {
				if err := os.Remove(filepath.Join(dir, "certs", k.Name+".yaml")); err != nil {
					t.Fatal(err)
				}
				f.rescan(t.Context())
			},
		}
	})
}

func TestWhatAFileDeclaresStaysWhileItCannotBeRead(t *testing.T) {
	a, b := storetest.Certificate("a"), storetest.Certificate("b")
	for _, tt := range []struct {
		name, content, want string // want in the log
		gone                bool
	}{
		{"half written", strings.Split(yamlOf(t, a), "me: ca")[0], "what it last declared stays", false},
		{"with a mistake", strings.Replace(yamlOf(t, a), "secretName", "secretNam", 1), "line 9: spec.secretNam: there is no such field", false},
		{"another kind", "apiVersion: cert-manager.io/v1\nkind: Issuer\n", "this is a cert-manager.io/v1 Issuer", false},
		{"not UTF-8", "a: \xc3\x28", "this is not YAML", false},
		{"declared twice", yamlOf(t, a) + "---\n" + yamlOf(t, a), "declared twice; the first counts", false},
		{"another certificate", yamlOf(t, b), "", true},
		{"nothing", "", "", true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dir := t.TempDir()
			var log bytes.Buffer
			declare(t, dir, "x.yaml", yamlOf(t, a))
			f := open(t, dir, &log)
			declare(t, dir, "x.yaml", tt.content)
			f.rescan(t.Context())
			f.rescan(t.Context())
			_, err := f.Get(t.Context(), a.Key())
			if (err != nil) != tt.gone || !strings.Contains(log.String(), tt.want) {
				t.Errorf("%v\n%s", err, log.String())
			}
			if tt.want != "" && !strings.Contains(tt.want, "twice") && strings.Count(log.String(), "level=ERROR") != 1 {
				t.Errorf("it is logged more than once:\n%s", log.String())
			}
		})
	}
}

func TestACertificateThatCannotBeKeptStopsNoOther(t *testing.T) {
	dir := t.TempDir()
	list := []*renewal.Certificate{storetest.Certificate("a"), storetest.Certificate(strings.Repeat("b", 63) + strings.Repeat(".b", 94)), storetest.Certificate("c")}
	for i, c := range list {
		declare(t, dir, fmt.Sprintf("%d.yaml", i), yamlOf(t, c))
	}
	inTheWay := filepath.Join(dir, "state", "status", "shop_a.yaml")
	if err := os.MkdirAll(inTheWay, 0o700); err != nil {
		t.Fatal(err)
	}
	var log bytes.Buffer
	f := open(t, dir, &log)
	for i, want := range []bool{false, false, true} {
		if _, err := f.Get(t.Context(), list[i].Key()); (err == nil) != want {
			t.Errorf("%s: %v", list[i].Key(), err)
		}
	}
	if !strings.Contains(log.String(), "are too many for a file's name") || !strings.Contains(log.String(), "cannot be taken over") {
		t.Errorf("it is not told of:\n%s", log.String())
	}
	if err := os.Remove(inTheWay); err != nil {
		t.Fatal(err)
	}
	f.rescan(t.Context())
	if _, err := f.Get(t.Context(), list[0].Key()); err != nil {
		t.Errorf("nothing is in its way any more: %v", err)
	}
}

func TestWhatIsNoCertificateFileIsLeftAlone(t *testing.T) {
	dir := t.TempDir()
	declare(t, dir, ".hidden.yaml", "x")
	declare(t, dir, "readme.txt", "x")
	declare(t, dir, "list.json", `{"apiVersion":"cert-manager.io/v1","kind":"Certificate","metadata":{"name":"j"},"spec":{"secretName":"j","dnsNames":["j"],"issuerRef":{"name":"ca"}}}`)
	var log bytes.Buffer
	f := open(t, dir, &log)
	if refs, err := f.List(t.Context()); err != nil || len(refs) != 1 || refs[0].Key.String() != "default/j" || log.Len() > 0 {
		t.Errorf("%v, %v, %s", refs, err, log.String())
	}
}

// TestOnlyTheOwnerCanReadKeys: also where the folder was made by others.
func TestOnlyTheOwnerCanReadKeys(t *testing.T) {
	dir := t.TempDir()
	if err := os.MkdirAll(filepath.Join(dir, "state", "secrets"), 0o777); err != nil {
		t.Fatal(err)
	}
	f := open(t, dir, nil)
	if err := f.PutSecret(t.Context(), &renewal.Secret{Namespace: "a", Name: "b", Data: map[string][]byte{renewal.TLSKey: []byte("k")}}); err != nil {
		t.Fatal(err)
	}
	err := filepath.WalkDir(filepath.Join(dir, "state"), func(path string, d os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err == nil && info.Mode()&os.ModeSymlink == 0 && info.Mode().Perm()&0o077 != 0 {
			t.Errorf("%s has mode %s", path, info.Mode())
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	raw, err := os.ReadFile(filepath.Join(f.SecretDir("a", "b"), "tls.key"))
	if err != nil || string(raw) != "k" {
		t.Errorf("%q, %v", raw, err)
	}
	for _, s := range []*renewal.Secret{
		{Namespace: "..", Name: "b"}, {Namespace: "a", Name: "../b"}, {Namespace: "a", Name: "b", Data: map[string][]byte{"../x": nil}}, {Namespace: "a", Name: "b", Data: map[string][]byte{".x": nil}},
	} {
		if err := f.PutSecret(t.Context(), s); err == nil {
			t.Errorf("%v is written", s)
		}
	}
	if raw, err := os.ReadFile(filepath.Join(f.SecretDir("a", "b"), "tls.key")); err != nil || string(raw) != "k" {
		t.Errorf("after refusals: %q, %v", raw, err)
	}
}

func TestASecondSchedulerIsRefused(t *testing.T) {
	dir := t.TempDir()
	f := open(t, dir, nil)
	l, err := f.Lock()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := open(t, dir, nil).Lock(); err == nil || !strings.Contains(err.Error(), "is another scheduler running?") {
		t.Error(err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if l, err := open(t, dir, nil).Lock(); err != nil {
		t.Error(err)
	} else {
		l.Close()
	}
}

// TestWhatAKilledSchedulerLeftIsTidiedUp: each step of a put or a delete may
// have been the last.
func TestWhatAKilledSchedulerLeftIsTidiedUp(t *testing.T) {
	for name, c := range map[string]struct {
		leave func(dir, version string) error
		want  string // the key afterwards; "": the folder is gone
	}{
		"a delete that only took the data away": {func(dir, _ string) error { return os.Remove(filepath.Join(dir, dataLink)) }, ""},
		"a put whose version nobody links to":   {func(dir, _ string) error { return os.Mkdir(filepath.Join(dir, "..NEXT"), 0o700) }, "k"},
		"a link that was not renamed":           {func(dir, v string) error { return os.Symlink(v, filepath.Join(dir, "..link-X")) }, "k"},
		"a value that is no more": {func(dir, _ string) error {
			return os.Symlink(filepath.Join(dataLink, "old"), filepath.Join(dir, "old"))
		}, "k"},
		"nothing": {func(string, string) error { return nil }, "k"},
	} {
		t.Run(name, func(t *testing.T) {
			root := t.TempDir()
			f := open(t, root, nil)
			s := &renewal.Secret{Namespace: "a", Name: "b", Annotations: map[string]string{"x": "y"}, Data: map[string][]byte{renewal.TLSKey: []byte("k")}}
			if err := f.PutSecret(t.Context(), s); err != nil {
				t.Fatal(err)
			}
			dir := f.SecretDir("a", "b")
			version, err := os.Readlink(filepath.Join(dir, dataLink))
			if err != nil {
				t.Fatal(err)
			}
			if err := c.leave(dir, version); err != nil {
				t.Fatal(err)
			}
			l, err := f.Lock()
			if err != nil {
				t.Fatal(err)
			}
			defer l.Close()
			got, err := f.GetSecret(t.Context(), "a", "b")
			if c.want == "" {
				if _, statErr := os.Lstat(dir); !errors.Is(err, renewal.ErrNotFound) || !errors.Is(statErr, fs.ErrNotExist) {
					t.Errorf("%v, %v", err, statErr)
				}
				return
			}
			if err != nil || string(got.Data[renewal.TLSKey]) != c.want || got.Annotations["x"] != "y" {
				t.Fatalf("%+v, %v", got, err)
			}
			entries, err := os.ReadDir(dir)
			if err != nil {
				t.Fatal(err)
			}
			var names []string
			for _, e := range entries {
				names = append(names, e.Name())
			}
			if want := []string{dataLink, version, renewal.TLSKey}; !slices.Equal(slices.Sorted(slices.Values(names)), slices.Sorted(slices.Values(want))) {
				t.Errorf("left are %q, want %q", names, want)
			}
		})
	}
	t.Run("one that cannot be read is left alone", func(t *testing.T) {
		root := t.TempDir()
		f := open(t, root, nil)
		dir := f.SecretDir("a", "b")
		if err := os.MkdirAll(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink("..gone", filepath.Join(dir, dataLink)); err != nil {
			t.Fatal(err)
		}
		l, err := f.Lock()
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		if _, err := os.Lstat(filepath.Join(dir, dataLink)); err != nil {
			t.Error(err)
		}
	})
}

func TestAStatusThatWasWrittenAsideIsTidiedUp(t *testing.T) {
	dir := t.TempDir()
	declare(t, dir, "a.yaml", yamlOf(t, storetest.Certificate("a")))
	f := open(t, dir, nil)
	aside := filepath.Join(f.statusDir(), ".new-"+rand.Text())
	if err := os.WriteFile(aside, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	before := time.Now().Add(-time.Hour)
	if err := os.Chtimes(aside, before, before); err != nil {
		t.Fatal(err)
	}
	l, err := f.Lock()
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if entries, err := os.ReadDir(f.statusDir()); err != nil || len(entries) != 1 || entries[0].Name() != "shop_a.yaml" {
		t.Errorf("left are %v, %v", entries, err)
	}
}

// TestRequestsOfCertificatesThatAreGoneAreTidiedUp, but only where it is
// certain that they are.
func TestRequestsOfCertificatesThatAreGoneAreTidiedUp(t *testing.T) {
	a, b := storetest.Certificate("a"), storetest.Certificate("b")
	for name, row := range map[string]struct {
		files map[string]string
		left  bool
	}{
		"another is declared":             {map[string]string{"b.yaml": yamlOf(t, b)}, false},
		"it is declared":                  {map[string]string{"a.yaml": yamlOf(t, a)}, true},
		"nothing is there yet":            {nil, true},
		"perhaps it is in a broken file":  {map[string]string{"b.yaml": yamlOf(t, b), "a.yaml": "spec: ["}, true},
		"perhaps it is in a folder there": {map[string]string{"b.yaml": yamlOf(t, b), "a.yaml/x": ""}, true},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			for name, content := range row.files {
				declare(t, dir, name, content)
			}
			f := open(t, dir, nil)
			for _, name := range []string{"a" + renewal.NextPrivateKeySuffix, "a-tls"} {
				if err := f.PutSecret(t.Context(), &renewal.Secret{Namespace: "shop", Name: name, Data: map[string][]byte{renewal.TLSKey: []byte("k")}}); err != nil {
					t.Fatal(err)
				}
			}
			l, err := f.Lock()
			if err != nil {
				t.Fatal(err)
			}
			defer l.Close()
			if _, err := f.GetSecret(t.Context(), "shop", "a-tls"); err != nil {
				t.Errorf("its certificate: %v", err)
			}
			if _, err := f.GetSecret(t.Context(), "shop", "a"+renewal.NextPrivateKeySuffix); (err == nil) != row.left {
				t.Errorf("its request: %v", err)
			}
		})
	}
}

// TestAKubernetesMountChangesItsLinks: a ConfigMap is replaced by swapping one
// symbolic link.
func TestAKubernetesMountChangesItsLinks(t *testing.T) {
	dir := t.TempDir()
	certs := filepath.Join(dir, "certs")
	version := func(name string, c *renewal.Certificate) {
		if err := os.MkdirAll(filepath.Join(certs, name), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(certs, name, "c.yaml"), []byte(yamlOf(t, c)), 0o644); err != nil {
			t.Fatal(err)
		}
		if err := link(certs, "..data", name); err != nil {
			t.Fatal(err)
		}
	}
	c := storetest.Certificate("a")
	version("..1", c)
	if err := os.Symlink("..data/c.yaml", filepath.Join(certs, "c.yaml")); err != nil {
		t.Fatal(err)
	}
	f := open(t, dir, nil)
	changes, ended := make(chan renewal.Key, 1), make(chan error, 1)
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		ended <- f.Watch(ctx, func(k renewal.Key) {
			select {
			case changes <- k:
			case <-ctx.Done():
			}
		})
	}()
	defer func() { cancel(); <-ended }() // it writes where the test's folder is removed
	<-changes
	c.Spec.DNSNames = []string{"new.example.org"}
	version("..2", c)
	deadline := time.After(time.Minute)
	for {
		select {
		case <-changes:
		case <-deadline:
			t.Fatal("the swap was not noticed")
		}
		if got, err := f.Get(t.Context(), c.Key()); err == nil && got.Spec.DNSNames[0] == "new.example.org" {
			return
		}
	}
}

func pemText(kind string, der []byte) string {
	return string(pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}))
}
