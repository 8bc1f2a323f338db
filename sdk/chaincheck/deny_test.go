package chaincheck

import (
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"fmt"
	"math/big"
	"strings"
	"testing"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

func denials(t testing.TB, list ...Denial) *DenySet {
	t.Helper()
	set, err := NewDenySet(list)
	if err != nil {
		t.Fatal(err)
	}
	return set
}

func spkiHash(c *x509.Certificate) string {
	sum := sha256.Sum256(c.RawSubjectPublicKeyInfo)
	return hex.EncodeToString(sum[:])
}

func TestWhatIsDeniedIsRefusedWhateverElseSaysYes(t *testing.T) {
	deny := func(of func(w *world) Denial) func(*testing.T, *world) {
		return func(t *testing.T, w *world) { w.params.Denied = denials(t, of(w)) }
	}
	hexSerial := func(c *x509.Certificate) string { return c.SerialNumber.Text(16) }
	check(t, []row{
		{"its identity", deny(func(w *world) Denial { return Denial{ID: spiffeid.RequireFromString(workload)} }), Revoked},
		{"another identity", deny(func(w *world) Denial { return Denial{ID: spiffeid.RequireFromString(workload + "2")} }), ""},
		{"its serial", deny(func(w *world) Denial { return Denial{Serial: hexSerial(w.leaf)} }), Revoked},
		{"its serial, with leading zeros and capitals", deny(func(w *world) Denial { return Denial{Serial: strings.ToUpper("000" + hexSerial(w.leaf))} }), Revoked},
		{"its serial, of its issuer", deny(func(w *world) Denial {
			return Denial{Serial: hexSerial(w.leaf), Issuer: hex.EncodeToString(w.issuing.cert.SubjectKeyId)}
		}), Revoked},
		{"its serial, of another issuer", deny(func(w *world) Denial {
			return Denial{Serial: hexSerial(w.leaf), Issuer: hex.EncodeToString(w.root.cert.SubjectKeyId)}
		}), ""},
		{"the issuing CA's serial", deny(func(w *world) Denial { return Denial{Serial: hexSerial(w.issuing.cert)} }), Revoked},
		{"the issuing CA's serial, of the root", deny(func(w *world) Denial {
			return Denial{Serial: hexSerial(w.issuing.cert), Issuer: hex.EncodeToString(w.root.cert.SubjectKeyId)}
		}), Revoked},
		{"the root's serial", deny(func(w *world) Denial { return Denial{Serial: hexSerial(w.root.cert)} }), Revoked},
		{"the root's serial, of itself", deny(func(w *world) Denial {
			return Denial{Serial: hexSerial(w.root.cert), Issuer: hex.EncodeToString(w.root.cert.SubjectKeyId)}
		}), Revoked},
		{"its key", deny(func(w *world) Denial { return Denial{SPKI: spkiHash(w.leaf)} }), Revoked},
		{"the issuing CA's key", deny(func(w *world) Denial { return Denial{SPKI: strings.ToUpper(spkiHash(w.issuing.cert))} }), Revoked},
		{"another key", deny(func(w *world) Denial { return Denial{SPKI: strings.Repeat("ab", 32)} }), ""},
		{"even where revocation is off", func(t *testing.T, w *world) {
			w.params.Revocation, w.params.Denied = Off, denials(t, Denial{ID: spiffeid.RequireFromString(workload)})
		}, Revoked},
		{"the CA of one path, where another leads round it", func(t *testing.T, w *world) {
			second := caWithKey(t, "issuing", w.root, w.issuing.key, nil)
			w.params.Chain = append(w.params.Chain, second.cert)
			w.params.Denied = denials(t, Denial{Serial: hexSerial(w.issuing.cert)})
		}, ""},
	})
	w := newWorld(t)
	w.params.Denied = denials(t, Denial{ID: spiffeid.RequireFromString(workload), Reason: "left the company", At: now})
	_, err := Verify(w.params)
	if want := "the identity " + workload + " was taken back at 2026-05-04T12:00:00Z: left the company"; err == nil || !strings.Contains(err.Error(), want) {
		t.Errorf("got %v", err)
	}
}

func TestDenialsThatDenyNothingAreNamed(t *testing.T) {
	for _, tt := range []struct {
		name   string
		denial Denial
		want   string // "" accepted
		holds  Denial
	}{
		{"colons and capitals", Denial{Serial: "0A:bc", Issuer: "AB:CD"}, "", Denial{Serial: "abc", Issuer: "abcd"}},
		{"an odd number of digits", Denial{Serial: "abc"}, "", Denial{Serial: "abc"}},
		{"20 octets", Denial{Serial: strings.Repeat("7f", 20)}, "", Denial{Serial: strings.Repeat("7f", 20)}},
		{"nothing", Denial{Reason: "x"}, "names 0 of", Denial{}},
		{"two subjects", Denial{ID: spiffeid.RequireFromString(workload), Serial: "1"}, "names 2 of", Denial{}},
		{"a serial that is no hex", Denial{Serial: "12 34"}, "is not hex digits", Denial{}},
		{"a prefix", Denial{Serial: "0x12"}, "is not hex digits", Denial{}},
		{"colons in the wrong places", Denial{Serial: "123:4"}, "colons", Denial{}},
		{"zero", Denial{Serial: "00"}, "is zero", Denial{}},
		{"21 octets", Denial{Serial: strings.Repeat("7f", 21)}, "more than 40", Denial{}},
		{"a book", Denial{Serial: strings.Repeat("0", 1<<20)}, "more than 40", Denial{}},
		{"an issuer that is no hex", Denial{Serial: "1", Issuer: "xy"}, "its issuer", Denial{}},
		{"an issuer without a serial", Denial{ID: spiffeid.RequireFromString(workload), Issuer: "ab"}, "issuer without a serial", Denial{}},
		{"a short key hash", Denial{SPKI: "abcd"}, "a SHA-256 has 32", Denial{}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			set, err := NewDenySet([]Denial{{Serial: "77"}, tt.denial})
			if tt.want != "" {
				if err == nil || !strings.Contains(err.Error(), "denial 1 is not used") || !strings.Contains(err.Error(), tt.want) || set.Len() != 1 {
					t.Fatalf("%d denials, %v", set.Len(), err)
				}
				return
			}
			if err != nil || set.Len() != 2 || set.Denials()[1] != tt.holds {
				t.Fatalf("%+v, %v", set.Denials(), err)
			}
		})
	}
	if set, err := NewDenySet(make([]Denial, 1000)); err == nil || len(err.Error()) > 4096 || set.Len() != 0 {
		t.Errorf("a thousand mistakes are told in %d bytes", len(fmt.Sprint(err)))
	}
	var none *DenySet
	if _, denied := none.Lookup(spiffeid.RequireFromString(workload), nil); denied || none.Len() != 0 || none.Denials() != nil {
		t.Error("no set denies")
	}
}

// many is a set of n denials of each kind, none of which concerns anyone.
func many(t testing.TB, n int) *DenySet {
	t.Helper()
	var list []Denial
	for i := range n {
		list = append(list,
			Denial{ID: spiffeid.RequireFromString(fmt.Sprintf("spiffe://example.org/ns/old/sa/%d", i))},
			Denial{Serial: fmt.Sprintf("77%030x", i)})
	}
	return denials(t, list...)
}

func TestLookingUpADenialAllocatesNothing(t *testing.T) {
	w := newWorld(t)
	set := many(t, 1000)
	if set.Len() != 2000 {
		t.Fatal(set.Len())
	}
	path := []*x509.Certificate{w.leaf, w.issuing.cert, w.root.cert}
	id := spiffeid.RequireFromString(workload)
	if n := testing.AllocsPerRun(100, func() {
		if _, denied := set.Lookup(id, path); denied {
			t.Fatal("denied")
		}
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

// FuzzDenial: what is accepted denies what it says and nothing beside it.
func FuzzDenial(f *testing.F) {
	f.Add("0A:bc", "", "")
	f.Add("abc", "ab:cd", "")
	f.Add("", "", strings.Repeat("ab", 32))
	f.Add(strings.Repeat("0", 90), "00", "zz")
	f.Fuzz(func(t *testing.T, serial, issuer, spki string) {
		set, err := NewDenySet([]Denial{{Serial: serial, Issuer: issuer, SPKI: spki}})
		if err != nil {
			if set.Len() != 0 {
				t.Fatal("refused and held")
			}
			return
		}
		d := set.Denials()[0]
		if again, err := NewDenySet([]Denial{d}); err != nil || again.Denials()[0] != d {
			t.Fatalf("%+v does not read back: %v", d, err)
		}
		if d.Serial == "" {
			return
		}
		n, ok := new(big.Int).SetString(strings.ReplaceAll(serial, ":", ""), 16)
		if !ok {
			t.Fatalf("%q was accepted", serial)
		}
		keyID, _ := hex.DecodeString(d.Issuer)
		cert := &x509.Certificate{SerialNumber: n, AuthorityKeyId: keyID}
		if _, denied := set.Lookup(spiffeid.ID{}, []*x509.Certificate{cert}); !denied {
			t.Fatalf("%+v denies not what it names", d)
		}
		cert.SerialNumber = new(big.Int).Add(n, big.NewInt(1))
		if _, denied := set.Lookup(spiffeid.ID{}, []*x509.Certificate{cert}); denied {
			t.Fatalf("%+v denies another", d)
		}
	})
}
