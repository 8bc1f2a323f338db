package ca

import (
	"bytes"
	"encoding/hex"
	"flag"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

var update = flag.Bool("update", false, "rewrite golden files")

// golden reads a stored value that an earlier program wrote; with -update it
// becomes what this one writes.
func golden(t *testing.T, name string, write func() []byte) []byte {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		if err := os.MkdirAll("testdata", 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(hex.Dump(write())), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	dump, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var value []byte
	for line := range bytes.Lines(dump) {
		digits := bytes.ReplaceAll(line[10:min(59, len(line))], []byte(" "), nil)
		part, err := hex.DecodeString(string(digits))
		if err != nil {
			if len(line) < 12 { // the last line of a dump holds an offset alone
				break
			}
			t.Fatal(err)
		}
		value = append(value, part...)
	}
	return value
}

var goldenAt = time.Date(2026, 11, 20, 12, 0, 0, 0, time.UTC)

// What was stored once stays readable.
func TestStoredValuesStayReadable(t *testing.T) {
	entry := crlEntry{Serial: "4f00112233445566778899aabbccddee", RevokedAt: goldenAt, Reason: reasonSuperseded, NotAfter: goldenAt.Add(time.Hour), Key: keyTag{1, 2, 3}}
	value := golden(t, "crl-v1.hex", func() []byte {
		a := newWorld(t).replica()
		k := a.copyKnown()
		next, err := a.nextCRL(k.crl, []crlEntry{entry}, time.Now())
		if err != nil {
			t.Fatal(err)
		}
		return next.encode()
	})
	crl, err := decodeCRL(value)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]crlEntry{entry}, crl.Entries); diff != "" || crl.Number != 2 {
		t.Errorf("CRL %d: %s", crl.Number, diff)
	}
	if !bytes.Equal(crl.encode(), value) {
		t.Error("the CRL is written in another form than it was")
	}
	for i := range value { // damaged in the store
		bad := bytes.Clone(value)
		bad[i] ^= 0x80
		if _, err := decodeCRL(bad); err == nil {
			t.Fatalf("byte %d flipped: accepted", i)
		}
	}

	want := revocationObject{
		ID: "00112233aabbccdd", Authority: "default", SPIFFEID: "spiffe://example.org/w", Serials: []string{entry.Serial},
		Reason: "stolen", Actor: "alice", RevokedAt: goldenAt, CRLNumber: 2, Blocks: true,
	}
	value = golden(t, "revocation-v1.hex", func() []byte {
		value, err := encodeObject(kindRevocation, want)
		if err != nil {
			t.Fatal(err)
		}
		return value
	})
	var got revocationObject
	if err := decodeObject(value, kindRevocation, &got); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	if err := decodeObject(value, kindAuthority, &got); err == nil {
		t.Error("a revocation was read as an authority")
	}

	authority := authorityObject{
		Name: "default", TrustDomain: "example.org", CreatedAt: goldenAt, Sequence: 1, RootCert: []byte{1}, RootKey: "default/root-1",
		IssuingCert: []byte{2}, IssuingKey: "default/issuing-1", JWTKey: "default/jwt-1", JWTKeyID: "k", JWTPublic: []byte{3},
	}
	value = golden(t, "authority-v1.hex", func() []byte {
		value, err := encodeObject(kindAuthority, authority)
		if err != nil {
			t.Fatal(err)
		}
		return value
	})
	var read authorityObject
	if err := decodeObject(value, kindAuthority, &read); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(authority, read); diff != "" {
		t.Error(diff)
	}
}
