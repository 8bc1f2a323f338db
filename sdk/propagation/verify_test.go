package propagation

import (
	"errors"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/legation-io/legation/sdk/identity"
	"github.com/legation-io/legation/sdk/jwtcheck"
)

func TestAChainNamesItsOriginEachHopAndTheCaller(t *testing.T) {
	w := newWorld(t)
	names := []string{"shop", "orders", "stock", "db"}
	in := w.inbound("db")
	for n := 1; n < len(names); n++ {
		through := append([]string{}, names[len(names)-1-n:]...)
		chain, err := in.Accept(from(w.ca.ID("stock"), wire(w.tokens(through...)...)))
		if err != nil {
			t.Fatal(err)
		}
		hops := chain.Hops()
		if len(hops) != n || chain.Len() != n || chain.Origin() != w.ca.ID(through[0]) || chain.Caller() != w.ca.ID("stock") {
			t.Errorf("%d hops: %v", n, chain)
		}
		for i, h := range hops {
			if h.ID != w.ca.ID(through[i]) || h.Audience != w.ca.ID(through[i+1]) || h.Proof != ByToken || h.Cluster != "test" || h.WorkloadName != "default/"+through[i] || h.Ext != nil {
				t.Errorf("hop %d: %+v", i+1, h)
			}
			if !chain.Through(h.ID) || chain.Through(w.ca.ID("db")) {
				t.Errorf("Through(%s)", h.ID)
			}
		}
		if !chain.ExpiresAt().Equal(w.now.Add(5 * time.Minute)) {
			t.Errorf("expires %s", chain.ExpiresAt())
		}
	}
}

func TestAPeerWithoutATokenIsKnownByItsConnection(t *testing.T) {
	w := newWorld(t)
	chain, err := w.inbound("db").Accept(from(w.ca.ID("stock")))
	if err != nil {
		t.Fatal(err)
	}
	if h := chain.Hops(); len(h) != 1 || h[0].Proof != ByConnection || chain.Caller() != w.ca.ID("stock") || chain.Origin() != w.ca.ID("stock") || !chain.ExpiresAt().IsZero() {
		t.Errorf("%+v", h)
	}
	var zero Chain
	if !zero.IsZero() || zero.Len() != 0 || zero.Hops() != nil || !zero.Origin().IsZero() || !zero.Caller().IsZero() || zero.Through(w.ca.ID("db")) || zero.String() != "nobody" {
		t.Error("the zero chain names somebody")
	}
}

// TestA46ChainsThatAreRefused is the table of attacks on a chain: each names
// the hop at fault and the cause.
func TestA46ChainsThatAreRefused(t *testing.T) {
	w := newWorld(t)
	shop, orders, stock, db, mallory := w.ca.ID("shop"), w.ca.ID("orders"), w.ca.ID("stock"), w.ca.ID("db"), w.ca.ID("mallory")
	foreign := w.partner.ID("web")
	honest := w.tokens("shop", "orders", "stock", "db")
	other := w.tokens("mallory", "orders", "stock", "db")
	expired := map[string]any{"exp": w.now.Add(-time.Second).Unix()}
	old := w.sign(shop, orders, "", expired)
	afterOld, oldMiddle := w.sign(orders, stock, old), w.sign(orders, stock, honest[0], map[string]any{"exp": w.now.Add(-time.Second).Unix()})
	forgedKey := newWorld(t)
	sidestep := func(c *Config) { c.TrustDomains = []spiffeid.TrustDomain{w.partner.Domain} }
	cross := w.sign(foreign, stock, "")
	shared, err := w.ca.Sign(stock, []string{db.String(), "spiffe://example.org/other"}, nil)
	if err != nil {
		t.Fatal(err)
	}

	for _, tc := range []struct {
		name  string
		peer  spiffeid.ID
		wire  string
		cause Cause
		hop   int
		text  string
	}{
		{"a token that another workload stole", mallory, wire(w.sign(stock, db, "")), WrongPeer, 1, "taken from somebody"},
		{"a whole chain that another workload stole", mallory, wire(honest...), WrongPeer, 3, ""},
		{"a chain replayed to another service", orders, wire(w.sign(orders, stock, "")), NotForUs, 1, ""},
		{"an origin's token that expired", stock, wire(old, afterOld, w.sign(stock, db, afterOld)), Expired, 1, "expired"},
		{"a middle that expired", stock, wire(honest[0], oldMiddle, w.sign(stock, db, oldMiddle)), Expired, 2, "expired"},
		{"a new call in the name of an old one", stock, wire(old, afterOld, honest[2]), Unlinked, 2, ""},
		{"the last hop expired", stock, wire(w.sign(stock, db, "", expired)), Expired, 1, "expired"},
		{"the origin cut off", stock, wire(honest[1:]...), Truncated, 1, "missing"},
		{"all but the caller cut off", stock, wire(honest[2]), Truncated, 1, ""},
		{"the middle cut out", stock, wire(honest[0], honest[2]), WrongOrder, 1, "is not for hop 2"},
		{"the caller cut off", stock, wire(honest[:2]...), NotForUs, 2, ""},
		{"the caller cut off, by the one before", orders, wire(honest[:2]...), NotForUs, 2, ""},
		{"reordered", stock, wire(honest[1], honest[0], honest[2]), WrongOrder, 2, ""},
		{"reversed", stock, wire(honest[2], honest[1], honest[0]), NotForUs, 3, ""},
		{"a hop twice", stock, wire(honest[0], honest[1], honest[1], honest[2]), WrongOrder, 2, ""},
		{"another origin spliced in", stock, wire(other[0], honest[1], honest[2]), Unlinked, 1, "another token of a caller"},
		{"another call's middle spliced in", stock, wire(honest[0], other[1], honest[2]), Unlinked, 2, ""},
		{"a caller put before one that acts for itself", stock, wire(honest[0], honest[1], w.sign(stock, db, "")), Unlinked, 2, "did not sign"},
		{"a victim's token put before one's own", mallory, wire(w.sign(shop, orders, ""), w.sign(mallory, db, w.sign(shop, orders, ""))), WrongOrder, 1, ""},
		{"a link to a token of another audience", mallory, wire(honest[0], w.sign(mallory, db, honest[0])), WrongOrder, 1, ""},
		{"signed by another authority", stock, wire(forgedKey.sign(stock, db, "")), BadToken, 1, "did not sign"},
		{"an origin signed by another authority", stock, wire(forgedKey.sign(orders, stock, ""), w.sign(stock, db, forgedKey.sign(orders, stock, ""))), BadToken, 1, ""},
		{"an origin of another trust domain", stock, wire(cross, w.sign(stock, db, cross)), OtherDomain, 1, "partner.example"},
		{"a peer of another trust domain", foreign, wire(w.sign(foreign, db, "")), OtherDomain, 0, "partner.example"},
		{"a token for two audiences", stock, wire(shared), BadToken, 1, "2 audiences"},
		{"a token whose spiffe_id is another", stock, wire(w.sign(stock, db, "", map[string]any{"spiffe_id": shop.String()})), BadToken, 1, "spiffe_id"},
		{"a link that is no text", stock, wire(honest[1], w.sign(stock, db, "", map[string]any{"ext": map[string]any{extPrev: 1}})), Unlinked, 1, ""},
		{"nine hops", stock, wire(w.tokens("1", "2", "3", "4", "5", "6", "7", "8", "stock", "db")...), TooDeep, 0, "circle"},
		{"more bytes than are looked at", stock, scheme + strings.Repeat("a", DefaultMaxBytes), TooLarge, 0, ""},
		{"a megabyte of separators", stock, scheme + strings.Repeat("~", 1<<20), TooLarge, 0, ""},
		{"separators alone", stock, scheme + "~~", Malformed, 3, ""},
		{"an empty header", stock, "", Malformed, 0, ""},
		{"the scheme alone", stock, scheme, Malformed, 1, ""},
		{"another scheme", stock, "JWT:" + honest[2], Malformed, 0, ""},
		{"a bearer token", stock, "Bearer " + honest[2], Malformed, 0, ""},
		{"two joined by a comma", stock, wire(w.sign(stock, db, "")) + "," + wire(w.sign(stock, db, "")), Malformed, 1, ""},
		{"two joined by a comma and a space", stock, wire(w.sign(stock, db, "")) + ", " + wire(w.sign(stock, db, "")), Malformed, 1, ""},
		{"NUL", stock, wire(w.sign(stock, db, "")) + "\x00", Malformed, 1, ""},
		{"CR LF", stock, wire(w.sign(stock, db, "")) + "\r\nspiffe-id: x", Malformed, 1, ""},
		{"a space at the end", stock, wire(w.sign(stock, db, "")) + " ", Malformed, 1, ""},
		{"a separator at the end", stock, wire(w.sign(stock, db, "")) + "~", Malformed, 2, ""},
		{"no peer", spiffeid.ID{}, wire(honest...), NoPeer, 0, "sdk/mtls"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			for range 2 { // what was verified of it helps no other
				chain, err := w.inbound("db").Accept(from(tc.peer, tc.wire))
				var refused *Error
				if !errors.As(err, &refused) || !chain.IsZero() {
					t.Fatalf("accepted as %v", chain)
				}
				if refused.Cause != tc.cause || refused.Hop != tc.hop || !strings.Contains(err.Error(), tc.text) {
					t.Errorf("cause %s at hop %d: %v\nwant %s at hop %d with %q", refused.Cause, refused.Hop, err, tc.cause, tc.hop, tc.text)
				}
			}
		})
	}
	t.Run("a trust domain that is accepted", func(t *testing.T) {
		in := w.inbound("db", sidestep)
		if chain, err := in.Accept(from(stock, wire(cross, w.sign(stock, db, cross)))); err != nil || chain.Origin() != foreign {
			t.Errorf("%v, %v", chain, err)
		}
		// Our authority's key does not speak for it.
		forged, _ := w.ca.Sign(foreign, []string{stock.String()}, nil)
		if _, err := in.Accept(from(stock, wire(forged, w.sign(stock, db, forged)))); err == nil {
			t.Error("one authority signed for another's domain")
		}
	})
	t.Run("two headers", func(t *testing.T) {
		one := wire(w.sign(stock, db, ""))
		if _, err := w.inbound("db").Accept(from(stock, one, one)); err == nil {
			t.Error("accepted")
		}
	})
	t.Run("the honest chain", func(t *testing.T) {
		if chain, err := w.inbound("db").Accept(from(stock, wire(honest...))); err != nil {
			t.Errorf("%v, %v", chain, err)
		}
	})
}

func TestAChainDiesWithItsFirstTokenAndWithItsKeys(t *testing.T) {
	w := newWorld(t)
	keys := &switched{keys: w.keys.K}
	in := w.inbound("db", func(c *Config) { c.Keys = keys })
	first := w.sign(w.ca.ID("shop"), w.ca.ID("stock"), "", map[string]any{"exp": w.now.Add(time.Minute).Unix()})
	request := from(w.ca.ID("stock"), wire(first, w.sign(w.ca.ID("stock"), w.ca.ID("db"), first)))
	if _, err := in.Accept(request); err != nil {
		t.Fatal(err)
	}
	keys.keys = jwtcheck.NewKeys(w.partner.Bundle(t))
	if _, err := in.Accept(request); err == nil {
		t.Error("accepted after the keys are gone")
	}
	keys.keys = w.keys.K
	if _, err := in.Accept(request); err != nil {
		t.Error(err)
	}
	w.now = w.now.Add(time.Minute)
	_, err := in.Accept(request)
	var refused *Error
	if !errors.As(err, &refused) || refused.Cause != Expired || refused.Hop != 1 || refused.ID != w.ca.ID("shop") {
		t.Errorf("%v, want hop 1 expired", err)
	}
}

type switched struct {
	keys *jwtcheck.Keys
	err  error
}

func (s *switched) Keys() (*jwtcheck.Keys, error) { return s.keys, s.err }

func TestNothingIsAcceptedBeforeWeAreReady(t *testing.T) {
	w := newWorld(t)
	request := from(w.ca.ID("stock"), wire(w.tokens("stock", "db")...))
	for name, change := range map[string]func(*Config){
		"no identity yet": func(c *Config) { c.Identity = &identity.Memory{} },
		"no keys yet":     func(c *Config) { c.Keys = &switched{} },
		"keys that fail":  func(c *Config) { c.Keys = &switched{err: errors.New("no agent")} },
	} {
		_, err := w.inbound("db", change).Accept(request)
		var refused *Error
		if !errors.As(err, &refused) || refused.Cause != NotReady || refused.Status() != 503 {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := w.inbound("db", func(c *Config) { c.RequireToken = true }).Accept(from(w.ca.ID("stock"))); err == nil {
		t.Error("accepted without the token that is required")
	}
}

func TestTheSidecarIsBelievedFromItsOwnMachineOnly(t *testing.T) {
	w := newWorld(t)
	in := w.inbound("db", func(c *Config) { c.Mode = Sidecar })
	tcp := func(s string) net.Addr {
		a, err := net.ResolveTCPAddr("tcp", s)
		if err != nil {
			t.Fatal(err)
		}
		return a
	}
	id := []string{w.ca.ID("stock").String()}
	lo, far := tcp("127.0.0.1:80"), tcp("10.0.0.1:80")
	for name, tc := range map[string]struct {
		r    Received
		want Cause
	}{
		"over loopback":                                 {Received{SPIFFEID: id, WorkloadID: id, Local: lo, Remote: tcp("127.0.0.1:5555")}, ""},
		"over IPv6 loopback":                            {Received{SPIFFEID: id, WorkloadID: id, Local: tcp("[::1]:80"), Remote: tcp("[::1]:5555")}, ""},
		"over a Unix socket":                            {Received{SPIFFEID: id, WorkloadID: id, Local: &net.UnixAddr{Name: "/s", Net: "unix"}}, ""},
		"with the caller's token":                       {Received{SPIFFEID: id, WorkloadID: id, Local: lo, Remote: lo, Tokens: []string{wire(w.tokens("shop", "stock", "db")...)}}, ""},
		"from another machine":                          {Received{SPIFFEID: id, WorkloadID: id, Local: far, Remote: tcp("10.0.0.2:5555")}, NoPeer},
		"from another machine to loopback":              {Received{SPIFFEID: id, WorkloadID: id, Local: lo, Remote: tcp("10.0.0.2:5555")}, NoPeer},
		"from loopback to an address that others reach": {Received{SPIFFEID: id, WorkloadID: id, Local: far, Remote: lo}, NoPeer},
		"from nowhere":                                  {Received{SPIFFEID: id, WorkloadID: id}, NoPeer},
		"without the header":                            {Received{Local: lo, Remote: lo}, NoPeer},
		"with the header twice":                         {Received{SPIFFEID: append(id, id...), WorkloadID: id, Local: lo, Remote: lo}, NoPeer},
		"without workload-id":                           {Received{SPIFFEID: id, Local: lo, Remote: lo}, Malformed},
		"with another workload-id":                      {Received{SPIFFEID: id, WorkloadID: []string{"spiffe://example.org/x"}, Local: lo, Remote: lo}, Malformed},
		"with no SPIFFE ID":                             {Received{SPIFFEID: []string{"stock"}, WorkloadID: []string{"stock"}, Local: lo, Remote: lo}, Malformed},
		"with two joined by a comma":                    {Received{SPIFFEID: []string{id[0] + "," + id[0]}, WorkloadID: []string{id[0] + "," + id[0]}, Local: lo, Remote: lo}, Malformed},
		"with another's token":                          {Received{SPIFFEID: id, WorkloadID: id, Local: lo, Remote: lo, Tokens: []string{wire(w.tokens("shop", "db")...)}}, WrongPeer},
	} {
		chain, err := in.Accept(tc.r)
		var refused *Error
		errors.As(err, &refused)
		switch {
		case tc.want == "" && (err != nil || chain.Caller() != w.ca.ID("stock")):
			t.Errorf("%s: %v, %v", name, chain, err)
		case tc.want != "" && (refused == nil || refused.Cause != tc.want):
			t.Errorf("%s: %v, %v; want %s", name, chain, err, tc.want)
		}
	}
}
