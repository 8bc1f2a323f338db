package sealing

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"testing"
)

var key = []byte("0123456789abcdef0123456789abcdef")

func sealer(t testing.TB) *Sealer {
	t.Helper()
	s, err := New(key)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestASealedValueIsRefused(t *testing.T) {
	s := sealer(t)
	sealed, err := s.Seal("name", []byte("value"))
	if err != nil {
		t.Fatal(err)
	}
	if got, err := s.Open("name", sealed); err != nil || string(got) != "value" {
		t.Fatal(string(got), err)
	}
	if again, _ := s.Seal("name", []byte("value")); bytes.Equal(again, sealed) {
		t.Error("sealing twice gives the same")
	}
	for i := range sealed {
		altered := bytes.Clone(sealed)
		altered[i] ^= 1
		if _, err := s.Open("name", altered); !errors.Is(err, ErrRefused) {
			t.Errorf("with byte %d altered: %v", i, err)
		}
	}
	for n := range sealed {
		if _, err := s.Open("name", sealed[:n]); !errors.Is(err, ErrRefused) {
			t.Errorf("cut off at %d: %v", n, err)
		}
	}
	if _, err := s.Open("other", sealed); !errors.Is(err, ErrRefused) {
		t.Errorf("under another name: %v", err)
	}
}

func TestAKeyFileIs(t *testing.T) {
	dir := t.TempDir()
	for name, row := range map[string]struct {
		content string
		fine    bool
	}{
		"32 bytes":                   {string(key), true},
		"hexadecimal with a newline": {"3031323334353637383961626364656630313233343536373839616263646566\n", true},
		"base64":                     {"MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY=", true},
		"not a word":                 {"secret", false},
		"not 16 bytes":               {"0123456789abcdef", false},
		"not empty":                  {"", false},
	} {
		path := filepath.Join(dir, "key")
		if err := os.WriteFile(path, []byte(row.content), 0o600); err != nil {
			t.Fatal(err)
		}
		got, err := ReadKey(path)
		if (err == nil) != row.fine || row.fine && !bytes.Equal(got, key) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func FuzzOpen(f *testing.F) {
	s := sealer(f)
	good, err := s.Seal("n", []byte("v"))
	if err != nil {
		f.Fatal(err)
	}
	f.Add("n", good)
	f.Add("n", []byte(magic))
	f.Add("", []byte{})
	f.Fuzz(func(t *testing.T, name string, sealed []byte) {
		value, err := s.Open(name, sealed)
		if err == nil && (name != "n" || string(value) != "v") { // what a seed is
			t.Fatalf("%q was opened under %q as %q", sealed, name, value)
		}
	})
}
