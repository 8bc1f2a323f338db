package store_test

import (
	"bytes"
	"strings"
	"testing"

	"github.com/legation-io/legation/internal/fault"
	"github.com/legation-io/legation/internal/store"
)

func TestKeysAreReadAsTheyWereWritten(t *testing.T) {
	for _, k := range []store.Key{
		{TrustDomain: "example.org", Namespace: "shop", Kind: "WorkloadIdentity", Name: "web"},
		{TrustDomain: "example.org", Namespace: store.System, Kind: "node", Name: "a/b/c"},
	} {
		got, err := store.ParseKey(k.String())
		if err != nil || got != k {
			t.Errorf("%s was read as %+v, %v", k, got, err)
		}
	}
	for _, bad := range []string{"", "/legation/v1/", "/legation/v1/td/ns/kind", "/legation/v1/td//kind/n", "/legation/v1/td/ns/kind/", "/legation/v2/td/ns/kind/n", "td/ns/kind/n"} {
		if k, err := store.ParseKey(bad); err == nil {
			t.Errorf("%q was read as %+v", bad, k)
		}
	}
}

func FuzzParseKey(f *testing.F) {
	f.Add("/legation/v1/td/ns/kind/name")
	f.Fuzz(func(t *testing.T, s string) {
		if k, err := store.ParseKey(s); err == nil && k.String() != s {
			t.Errorf("%q became %q", s, k)
		}
	})
}

func TestValuesSayWhatTheyAre(t *testing.T) {
	for _, tt := range []struct {
		kind    string
		version int
		data    string
	}{
		{"node", 1, "x"}, {"a", 1, ""}, {"legation.io/v1alpha1", 300, "\x00\xff"}, {strings.Repeat("k", 64), 1 << 30, "data"},
	} {
		raw := store.EncodeValue(tt.kind, tt.version, []byte(tt.data))
		kind, version, data, err := store.DecodeValue(raw)
		if err != nil || kind != tt.kind || version != tt.version || string(data) != tt.data {
			t.Errorf("%+v came back as %q %d %q, %v", tt, kind, version, data, err)
		}
	}
}

func TestWhatIsNotAValueIsRefused(t *testing.T) {
	good := string(store.EncodeValue("node", 1, nil))
	for name, raw := range map[string]string{
		"nothing":                     "",
		"another framing":             "{}" + good,
		"no kind":                     "\xd1\x00\x01",
		"a kind beyond the end":       "\xd1\x20node",
		"a kind of foreign letters":   "\xd1\x04no e\x01",
		"no version":                  good[:len(good)-1],
		"version 0":                   good[:len(good)-1] + "\x00",
		"a version in too many bytes": good[:len(good)-1] + "\x81\x00",
		"a version without an end":    good[:len(good)-1] + "\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff",
		"a version over 31 bits":      good[:len(good)-1] + "\xff\xff\xff\xff\x0f",
	} {
		if kind, v, data, err := store.DecodeValue([]byte(raw)); !fault.Is(err, fault.Invalid) {
			t.Errorf("%s: decoded as %q %d %q, %v", name, kind, v, data, err)
		}
	}
}

func TestReadersRefuseOtherKindsAndNewerVersions(t *testing.T) {
	raw := store.EncodeValue("node", 2, []byte("x"))
	if v, data, err := store.DecodeAs("node", 2, raw); err != nil || v != 2 || string(data) != "x" {
		t.Errorf("decoded as %d %q, %v", v, data, err)
	}
	if _, _, err := store.DecodeAs("node", 1, raw); err == nil || !strings.Contains(err.Error(), "newer") {
		t.Errorf("a newer version: %v", err)
	}
	if _, _, err := store.DecodeAs("token", 2, raw); err == nil || !strings.Contains(err.Error(), "is a node") {
		t.Errorf("another kind: %v", err)
	}
}

func FuzzDecodeValue(f *testing.F) {
	f.Add(store.EncodeValue("node", 1, []byte("data")))
	f.Add(store.EncodeValue("legation.io/v1alpha1", 300, nil))
	f.Add([]byte{0xd1, 1, 'a', 0x81, 0})
	f.Fuzz(func(t *testing.T, raw []byte) {
		kind, version, data, err := store.DecodeValue(raw)
		if err == nil && !bytes.Equal(store.EncodeValue(kind, version, data), raw) {
			t.Errorf("%q was decoded and is encoded otherwise", raw)
		}
	})
}
