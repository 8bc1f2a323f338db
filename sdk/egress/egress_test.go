package egress

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// world resolves by a table and records what is dialled.
type world struct {
	names  map[string][]string
	dialed []string
}

func (w *world) config(c Config) Config {
	c.Resolve = func(_ context.Context, host string) ([]netip.Addr, error) {
		var addrs []netip.Addr
		for _, s := range w.names[host] {
			addrs = append(addrs, netip.MustParseAddr(s))
		}
		return addrs, nil
	}
	c.Dial = func(_ context.Context, _, address string) (net.Conn, error) {
		w.dialed = append(w.dialed, address)
		a, _ := net.Pipe()
		return a, nil
	}
	return c
}

// TestA08OnlyAllowedAddressesAreReached: by every spelling and after
// resolution.
func TestA08OnlyAllowedAddressesAreReached(t *testing.T) {
	names := map[string][]string{
		"public.example": {"93.184.215.14"}, "six.example": {"2606:2800:21f:cb07:6820:80da:af6b:8b2c"},
		"loop.example": {"127.0.0.1"}, "loop6.example": {"::1"}, "meta.example": {"169.254.169.254"}, "ten.example": {"10.1.2.3"},
		"mapped.example": {"::ffff:127.0.0.1"}, "both.example": {"10.1.2.3", "93.184.215.14"}, "none.example": {},
		"ocsp.corp.example": {"10.9.9.9"},
	}
	allowed := Config{Allow: []netip.Prefix{netip.MustParsePrefix("10.1.0.0/16")}, AllowHosts: []string{"OCSP.corp.example."}}
	for _, tt := range []struct {
		name, address string
		config        Config
		dials         string // "" refused
	}{
		{"a public name", "public.example:80", Config{}, "93.184.215.14:80"},
		{"a public IPv6 name", "six.example:80", Config{}, "[2606:2800:21f:cb07:6820:80da:af6b:8b2c]:80"},
		{"a public address", "93.184.215.14:80", Config{}, "93.184.215.14:80"},
		{"another port", "public.example:6379", Config{}, ""},
		{"a name of loopback", "loop.example:80", Config{}, ""},
		{"a name of IPv6 loopback", "loop6.example:80", Config{}, ""},
		{"a name of the metadata service", "meta.example:80", Config{}, ""},
		{"a private name", "ten.example:80", Config{}, ""},
		{"an IPv4 address written as IPv6, in DNS", "mapped.example:80", Config{}, ""},
		{"of a public and a private address only the public is tried", "both.example:80", Config{}, "93.184.215.14:80"},
		{"a name without addresses", "none.example:80", Config{}, ""},
		{"loopback", "127.0.0.1:80", Config{}, ""},
		{"loopback in another spelling", "127.1:80", Config{}, ""},
		{"loopback as one number", "2130706433:80", Config{}, ""},
		{"loopback in octal", "0177.0.0.1:80", Config{}, ""},
		{"loopback in hex", "0x7f.0.0.0x1:80", Config{}, ""},
		{"unspecified, which connects to loopback", "0.0.0.0:80", Config{}, ""},
		{"unspecified IPv6", "[::]:80", Config{}, ""},
		{"mapped loopback", "[::ffff:127.0.0.1]:80", Config{}, ""},
		{"mapped public", "[::ffff:93.184.215.14]:80", Config{}, ""},
		{"NAT64", "[64:ff9b::7f00:1]:80", Config{}, ""},
		{"6to4 of loopback", "[2002:7f00:1::]:80", Config{}, ""},
		{"Teredo", "[2001:0:1::1]:80", Config{}, ""},
		{"unique local", "[fd00:ec2::254]:80", Config{}, ""},
		{"link-local with a zone", "[fe80::1%lo]:80", Config{}, ""},
		{"IPv4-compatible", "[::7f00:1]:80", Config{}, ""},
		{"carrier-grade NAT, where a cloud has its metadata", "100.100.100.200:80", Config{}, ""},
		{"a cloud's metadata at a public address", "168.63.129.16:80", Config{}, ""},
		{"broadcast", "255.255.255.255:80", Config{}, ""},
		{"multicast", "224.0.0.1:80", Config{}, ""},
		{"a service name as port", "public.example:http", Config{}, ""},
		{"an allowed network, at any port", "ten.example:8080", allowed, "10.1.2.3:8080"},
		{"beside the allowed network", "10.2.0.1:80", allowed, ""},
		{"the allowed network in IPv6 spelling", "[::ffff:10.1.2.3]:80", allowed, ""},
		{"an allowed host", "ocsp.corp.example:2560", allowed, "10.9.9.9:2560"},
		{"the address of an allowed host", "10.9.9.9:80", allowed, ""},
		{"a host below the allowed one", "a.ocsp.corp.example:80", allowed, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := &world{names: names}
			g, err := New(w.config(tt.config))
			if err != nil {
				t.Fatal(err)
			}
			conn, err := g.DialContext(t.Context(), "tcp", tt.address)
			if conn != nil {
				conn.Close()
			}
			if got := strings.Join(w.dialed, " "); got != tt.dials || (err == nil) != (tt.dials != "") {
				t.Fatalf("dialled %q (%v), want %q", got, err, tt.dials)
			}
		})
	}
}

// TestA08TheAddressLookedAtIsTheOneDialled: a name that resolves to something
// else the second time is asked for once.
func TestA08TheAddressLookedAtIsTheOneDialled(t *testing.T) {
	w := &world{}
	c := w.config(Config{})
	asked := 0
	c.Resolve = func(context.Context, string) ([]netip.Addr, error) {
		if asked++; asked > 1 {
			return []netip.Addr{netip.MustParseAddr("127.0.0.1")}, nil
		}
		return []netip.Addr{netip.MustParseAddr("93.184.215.14")}, nil
	}
	g, err := New(c)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := g.DialContext(t.Context(), "tcp", "rebind.example:80"); err != nil {
		t.Fatal(err)
	}
	if asked != 1 || len(w.dialed) != 1 || w.dialed[0] != "93.184.215.14:80" {
		t.Fatalf("asked %d times, dialled %v", asked, w.dialed)
	}
	var refused *Refused
	if _, err := g.DialContext(t.Context(), "tcp", "rebind.example:80"); !errors.As(err, &refused) || refused.Addr.String() != "127.0.0.1" {
		t.Fatalf("the second time: %v", err)
	}
}

// TestALookUpEnds, also for a caller without a deadline: net/http dials with
// none of its request's.
func TestALookUpEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g, err := New(Config{Resolve: func(ctx context.Context, _ string) ([]netip.Addr, error) {
			<-ctx.Done()
			return nil, ctx.Err()
		}})
		if err != nil {
			t.Fatal(err)
		}
		start := time.Now()
		if _, err := g.DialContext(t.Context(), "tcp", "hangs.example:80"); !errors.Is(err, context.DeadlineExceeded) || time.Since(start) != 5*time.Second {
			t.Errorf("after %s: %v", time.Since(start), err)
		}
	})
}

// TestA08NoRedirectIsFollowed, and no proxy of the environment is used.
func TestA08NoRedirectIsFollowed(t *testing.T) {
	t.Setenv("HTTP_PROXY", "http://127.0.0.1:1/")
	t.Setenv("http_proxy", "http://127.0.0.1:1/")
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	reached := make(chan string, 4)
	server := &http.Server{ReadHeaderTimeout: time.Minute, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		reached <- r.URL.Path
		if r.URL.Path == "/go" {
			http.Redirect(w, r, "/secret", http.StatusFound)
			return
		}
		_, _ = io.WriteString(w, "ok")
	})}
	done := make(chan struct{})
	go func() { defer close(done); _ = server.Serve(listener) }()
	defer func() { server.Close(); <-done }()
	g, err := New(Config{Allow: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}})
	if err != nil {
		t.Fatal(err)
	}
	client := g.Client(time.Minute)
	if r, err := client.Get(fmt.Sprintf("http://%s/plain", listener.Addr())); err != nil {
		t.Fatal(err)
	} else {
		r.Body.Close()
	}
	var refused *Refused
	r, err := client.Get(fmt.Sprintf("http://%s/go", listener.Addr()))
	if !errors.As(err, &refused) {
		t.Fatalf("the redirect: %v %v", r, err)
	}
	if a, b := <-reached, <-reached; a != "/plain" || b != "/go" || len(reached) != 0 {
		t.Fatalf("reached %s, %s and %d more", a, b, len(reached))
	}
}

func TestWhatAllowsNothingIsRefused(t *testing.T) {
	for name, c := range map[string]Config{
		"a wildcard host": {AllowHosts: []string{"*.example.com"}}, "a URL": {AllowHosts: []string{"http://a"}}, "a host with a port": {AllowHosts: []string{"a:80"}},
		"an empty host": {AllowHosts: []string{""}}, "no prefix": {Allow: []netip.Prefix{{}}}, "a mapped prefix": {Allow: []netip.Prefix{netip.MustParsePrefix("::ffff:10.0.0.0/104")}},
	} {
		if _, err := New(c); err == nil {
			t.Errorf("%s is accepted", name)
		}
	}
}

// FuzzNotPublic: whatever net/netip calls non-global is not public here.
func FuzzNotPublic(f *testing.F) {
	f.Add([]byte{127, 0, 0, 1})
	f.Add(netip.MustParseAddr("fe80::1").AsSlice())
	f.Add(netip.MustParseAddr("::ffff:10.0.0.1").AsSlice())
	f.Fuzz(func(t *testing.T, raw []byte) {
		addr, ok := netip.AddrFromSlice(raw)
		if !ok {
			return
		}
		local := addr.IsLoopback() || addr.IsPrivate() || addr.IsLinkLocalUnicast() || addr.IsMulticast() || addr.IsUnspecified() || !addr.IsGlobalUnicast()
		if local && NotPublic(addr) == "" || NotPublic(addr.Unmap()) != "" && NotPublic(addr) == "" {
			t.Errorf("%s counts as public", addr)
		}
	})
}
