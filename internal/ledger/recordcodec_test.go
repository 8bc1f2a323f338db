package ledger

import (
	"bytes"
	"encoding/hex"
	"flag"
	"net/netip"
	"os"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/legation-io/legation/internal/store"
)

var update = flag.Bool("update", false, "rewrite golden files")

const goldenFile = "testdata/segment-v1.hex"

func goldenRecords() []Record {
	at := time.Date(2026, 11, 20, 12, 0, 0, 123456789, time.UTC)
	return []Record{{
		Kind: KindX509, Authority: "default", Profile: "workload", Serial: "4f00112233445566778899aabbccddee",
		SPIFFEID: "spiffe://example.org/ns/default/sa/web", Namespace: "default", Entry: "default/web", Node: "node-1", Instance: "session/7",
		IssuedAt: at, NotBefore: at.Add(-5 * time.Minute).Truncate(time.Second), NotAfter: at.Add(24 * time.Hour).Truncate(time.Second),
		DNSNames: []string{"web", "web.default"}, IPs: []netip.Addr{netip.MustParseAddr("10.0.0.7"), netip.MustParseAddr("fd00::7")},
		SHA256: [32]byte{1, 2, 3}, KeySHA256: [32]byte{4, 5, 6}, LifetimeReason: "default of the trust domain, 24h0m0s",
	}, {
		Kind: KindJWT, Authority: "default", Profile: "workload", Serial: "00ff", SPIFFEID: "spiffe://example.org/ns/default/sa/web",
		IssuedAt: at, NotBefore: at.Truncate(time.Second), NotAfter: at.Add(5 * time.Minute).Truncate(time.Second), Audience: []string{"db"}, SHA256: [32]byte{7},
	}}
}

func encode(t testing.TB, records ...Record) []byte {
	t.Helper()
	var b []byte
	for i := range records {
		var err error
		if b, err = appendRecord(b, &records[i]); err != nil {
			t.Fatal(err)
		}
	}
	return encodeSegment(len(records), b)
}

var sameRecord = cmpopts.EquateComparable(netip.Addr{})

// The stored format is a promise: what was written once stays readable.
func TestTheRecordFormatIsGolden(t *testing.T) {
	got := []byte(hex.Dump(encode(t, goldenRecords()...)))
	if *update {
		if err := os.WriteFile(goldenFile, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(goldenFile)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("the format changed; a new one needs a new version and a reader for both:\n%s", cmp.Diff(string(want), string(got)))
	}
}

func TestASegmentReadsBackAsWritten(t *testing.T) {
	records, err := DecodeSegment(encode(t, goldenRecords()...))
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(goldenRecords(), records, sameRecord); diff != "" {
		t.Error(diff)
	}
}

func TestADamagedSegmentIsRefused(t *testing.T) {
	good := encode(t, goldenRecords()...)
	for n := range good {
		if _, err := DecodeSegment(good[:n]); err == nil {
			t.Errorf("cut to %d bytes: accepted", n)
		}
	}
	for i := range good {
		bad := bytes.Clone(good)
		bad[i] ^= 0x40
		if _, err := DecodeSegment(bad); err == nil {
			t.Errorf("byte %d flipped: accepted", i)
		}
	}
	if _, err := DecodeSegment(append(bytes.Clone(good), 0)); err == nil {
		t.Error("a byte left over: accepted")
	}
	_, _, data, err := store.DecodeValue(good)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := DecodeSegment(store.EncodeValue(kindSegment, segmentVersion+1, data)); err == nil {
		t.Error("a newer version: accepted")
	}
}

func TestASerialThatIsNotHexIsNotRecorded(t *testing.T) {
	for _, serial := range []string{"", "0", "XY", "AB", "abc", "ab cd"} {
		r := goldenRecords()[0]
		r.Serial = serial
		if _, err := appendRecord(nil, &r); err == nil {
			t.Errorf("serial %q: accepted", serial)
		}
	}
}

// A11: no bytes in a segment make the decoder panic; what it accepts it
// writes again and reads again the same.
func FuzzDecodeSegment(f *testing.F) {
	f.Add(encode(f, goldenRecords()...))
	f.Add(encode(f))
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, b []byte) {
		records, err := DecodeSegment(b)
		if err != nil {
			return
		}
		again, err := DecodeSegment(encode(t, records...))
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(records, again, sameRecord); diff != "" {
			t.Error(diff)
		}
	})
}
