package propagation

import (
	"strings"
	"testing"
)

func FuzzChainHeader(f *testing.F) {
	w := newWorld(f)
	honest := w.tokens("shop", "orders", "stock", "db")
	good := wire(honest...)
	f.Add(good)
	f.Add(wire(honest[2]))
	f.Add(wire(honest[1], honest[0], honest[2]))
	f.Add("jwt:~~.")
	in := w.inbound("db")
	f.Fuzz(func(t *testing.T, header string) {
		c, err := in.Accept(from(w.ca.ID("stock"), header))
		if (err == nil) != (header == good) {
			t.Errorf("%q passes as %v, %v", header, c, err)
		}
	})
}

func FuzzBaggage(f *testing.F) {
	f.Add("a=1, b=2;p;q=3")
	f.Add("workload.origin=spiffe:%2F%2Fexample.org%2Fshop")
	f.Add("=,;=%")
	f.Fuzz(func(t *testing.T, value string) {
		members, err := parseBaggage([]string{value})
		if err != nil {
			return
		}
		if len(members) > maxBaggageMembers {
			t.Errorf("%d members", len(members))
		}
		again, err := parseBaggage([]string{join(members)})
		if err != nil || join(again) != join(members) {
			t.Errorf("%q reads as %q and then as %q, %v", value, join(members), join(again), err)
		}
		if strings.ContainsAny(join(members), "\r\n\x00 ") {
			t.Errorf("%q reads as %q", value, join(members))
		}
	})
}

func FuzzIdentityHeaderNames(f *testing.F) {
	for _, s := range []string{"spiffe-id", "SPIFFE_ID", "Spiffe-Id-Bin", "x-workload_identity", "bin", "-bin", "workload-id-bin-bin"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, name string) {
		plain := strings.TrimSuffix(strings.ReplaceAll(asciiLower(name), "_", "-"), "-bin")
		want := ""
		for _, h := range []string{HeaderSPIFFEID, HeaderWorkloadID, HeaderWorkloadIdentity, HeaderForwardedClientCert} {
			if plain == h {
				want = h
			}
		}
		if got := identityHeader(name); got != want {
			t.Errorf("%q is taken for %q, want %q", name, got, want)
		}
	})
}

func asciiLower(s string) string {
	b := []byte(s)
	for i, c := range b {
		if 'A' <= c && c <= 'Z' {
			b[i] = c + 'a' - 'A'
		}
	}
	return string(b)
}
