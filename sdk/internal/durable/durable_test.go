package durable

import (
	"crypto/rand"
	"os"
	"path/filepath"
	"testing"
	"time"
)

func TestAFileIsTheOldOrTheNew(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "f")
	for _, content := range []string{"first", "second", ""} {
		if err := Replace(path, []byte(content)); err != nil {
			t.Fatal(err)
		}
		if got, err := os.ReadFile(path); err != nil || string(got) != content {
			t.Fatalf("%q, %v", got, err)
		}
		if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%v, %v", info.Mode(), err)
		}
	}
	if err := Create(path, []byte("x")); !os.IsExist(err) {
		t.Errorf("a file that is there is written over: %v", err)
	}
	inTheWay := filepath.Join(dir, "folder")
	if err := os.MkdirAll(filepath.Join(inTheWay, "x"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := Replace(inTheWay, nil); err == nil {
		t.Error("a folder is replaced by a file")
	}
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != 2 {
		t.Errorf("left over after a failure: %v, %v", entries, err)
	}
}

func TestWhatAKillLeftIsRemovedAndNothingElse(t *testing.T) {
	dir := t.TempDir()
	young := ".new-" + rand.Text()
	for name, age := range map[string]time.Duration{".new-" + rand.Text(): time.Hour, young: 0, ".new-mine": time.Hour, "f": time.Hour} {
		if err := Create(filepath.Join(dir, name), nil); err != nil {
			t.Fatal(err)
		}
		at := time.Now().Add(-age)
		if err := os.Chtimes(filepath.Join(dir, name), at, at); err != nil {
			t.Fatal(err)
		}
	}
	Tidy(dir)
	Tidy(filepath.Join(dir, "missing"))
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if name := e.Name(); name != young && name != ".new-mine" && name != "f" {
			t.Errorf("%s is left", name)
		}
	}
	if len(entries) != 3 {
		t.Errorf("left: %v", entries)
	}
}

func TestFoldersAreMadeWithThoseAbove(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "a", "b")
	for range 2 {
		if err := MkdirAll(path); err != nil {
			t.Fatal(err)
		}
	}
	for _, p := range []string{path, filepath.Dir(path)} {
		if info, err := os.Stat(p); err != nil || info.Mode().Perm() != 0o700 {
			t.Errorf("%s: %v, %v", p, info.Mode(), err)
		}
	}
	file := filepath.Join(dir, "file")
	if err := Create(file, nil); err != nil {
		t.Fatal(err)
	}
	if err := MkdirAll(filepath.Join(file, "a")); err == nil {
		t.Error("a folder is made in a file")
	}
	if err := MkdirAll(file); err == nil {
		t.Error("a file passes for a folder")
	}
}

func TestReadIsBoundedAndOfPlainFilesOnly(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "f")
	if err := os.WriteFile(path, []byte("12345"), 0o600); err != nil {
		t.Fatal(err)
	}
	if raw, err := Read(path, 5); err != nil || string(raw) != "12345" {
		t.Errorf("%q, %v", raw, err)
	}
	for what, at := range map[string]string{"a file that is too long": path, "a folder": dir, "nothing": filepath.Join(dir, "none")} {
		if raw, err := Read(at, 4); err == nil || raw != nil {
			t.Errorf("%s: %q, %v", what, raw, err)
		}
	}
}
