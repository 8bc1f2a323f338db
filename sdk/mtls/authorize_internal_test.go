package mtls

import (
	"context"
	"crypto/x509"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

var (
	domain = spiffeid.RequireTrustDomainFromString("example.org")
	other  = spiffeid.RequireTrustDomainFromString("other.example")
)

func TestAnAuthoriserThatPanicsLetsNobodyIn(t *testing.T) {
	broken := AuthorizeFunc(func(context.Context, *Request) error { panic("index out of range") })
	for name, a := range map[string]Authorizer{"alone": broken, "one of several": AuthorizeAnyOf(broken)} {
		var refused *RefusedError
		if err := a.authorize(t.Context(), &Request{}); !errors.As(err, &refused) || !strings.Contains(err.Error(), "the authoriser panicked: index out of range") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestAuthorizers(t *testing.T) {
	web, model := spiffeid.RequireFromPath(domain, "/ns/shop/sa/web"), spiffeid.RequireFromPath(domain, "/ns/ml/sa/model-a")
	yes := AuthorizeFunc(func(context.Context, *Request) error { return nil })
	no := AuthorizeFunc(func(context.Context, *Request) error { return errors.New("never") })
	spiffe := AuthorizeSPIFFE(func(id spiffeid.ID, chains [][]*x509.Certificate) error {
		if id != web || len(chains) != 1 {
			return errors.New("not it")
		}
		return nil
	})
	hosts := AuthorizeHosts(map[string][]spiffeid.ID{"Model.Example.org": {model}, "10.0.0.1": {web, model}})
	for _, tt := range []struct {
		name string
		a    Authorizer
		id   string
		host string
		want bool
	}{
		{"the exact ID", AuthorizeID(web), "spiffe://example.org/ns/shop/sa/web", "", true},
		{"one of several IDs", AuthorizeID(web, model), "spiffe://example.org/ns/ml/sa/model-a", "", true},
		{"an ID that starts the same", AuthorizeID(web), "spiffe://example.org/ns/shop/sa/web2", "", false},
		{"an ID in other capitals", AuthorizeID(web), "spiffe://example.org/ns/shop/sa/Web", "", false},
		{"the same path of another trust domain", AuthorizeID(web), "spiffe://other.example/ns/shop/sa/web", "", false},
		{"a member", AuthorizeMemberOf(domain), "spiffe://example.org/anything", "", true},
		{"a member of one of several", AuthorizeMemberOf(other, domain), "spiffe://example.org/anything", "", true},
		{"a member of another", AuthorizeMemberOf(domain), "spiffe://other.example/anything", "", false},
		{"a member of a domain below", AuthorizeMemberOf(domain), "spiffe://sub.example.org/anything", "", false},
		{"a path that matches", AuthorizePath(domain, "/ns/*/sa/model-*"), "spiffe://example.org/ns/ml/sa/model-a", "", true},
		{"a path that matches the second pattern", AuthorizePath(domain, "/x", "/ns/ml/**"), "spiffe://example.org/ns/ml/sa/model-a", "", true},
		{"a path that matches in another domain", AuthorizePath(domain, "/ns/*/sa/model-*"), "spiffe://other.example/ns/ml/sa/model-a", "", false},
		{"a function that agrees", yes, "spiffe://example.org/a", "", true},
		{"a function that does not", no, "spiffe://example.org/a", "", false},
		{"go-spiffe's authoriser that agrees", spiffe, "spiffe://example.org/ns/shop/sa/web", "", true},
		{"go-spiffe's authoriser that does not", spiffe, "spiffe://example.org/ns/shop/sa/db", "", false},
		{"any of: the second agrees", AuthorizeAnyOf(no, yes), "spiffe://example.org/a", "", true},
		{"any of: none agrees", AuthorizeAnyOf(no, no), "spiffe://example.org/a", "", false},
		{"all of: all agree", AuthorizeAllOf(yes, yes), "spiffe://example.org/a", "", true},
		{"all of: one does not", AuthorizeAllOf(yes, no), "spiffe://example.org/a", "", false},
		{"the host's ID", hosts, "spiffe://example.org/ns/ml/sa/model-a", "model.example.org", true},
		{"an address's second ID", hosts, "spiffe://example.org/ns/ml/sa/model-a", "10.0.0.1", true},
		{"another host's ID", hosts, "spiffe://example.org/ns/shop/sa/web", "model.example.org", false},
		{"a host that is not named", hosts, "spiffe://example.org/ns/ml/sa/model-a", "db.example.org", false},
		{"no host", hosts, "spiffe://example.org/ns/ml/sa/model-a", "", false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := &Request{Host: tt.host}
			r.Peer.ID = spiffeid.RequireFromString(tt.id)
			err := tt.a.authorize(context.Background(), r)
			if (err == nil) != tt.want {
				t.Fatalf("got %v", err)
			}
			if err != nil {
				if refused, ok := errors.AsType[*RefusedError](err); !ok || refused.Peer.ID != r.Peer.ID || !strings.Contains(err.Error(), tt.id) {
					t.Errorf("the refusal does not say of whom: %v", err)
				}
			}
			if tt.a.String() == "" {
				t.Error("it does not say whom it lets in")
			}
		})
	}
}

func TestPatterns(t *testing.T) {
	for _, tt := range []struct {
		pattern, path string
		want          bool
	}{
		{"/ns/ml/sa/a", "/ns/ml/sa/a", true},
		{"/ns/ml/sa/a", "/ns/ml/sa/ab", false},
		{"/ns/ml/sa/a", "/ns/ml/sa/a/b", false},
		{"/ns/*/sa/a", "/ns/ml/sa/a", true},
		{"/ns/*/sa/a", "/ns/a/b/sa/a", false},
		{"/ns/*/sa/model-*", "/ns/ml/sa/model-", true},
		{"/ns/*/sa/model-*", "/ns/ml/sa/model-a", true},
		{"/ns/*/sa/model-*", "/ns/ml/sa/model-a/admin", false},
		{"/ns/*/sa/model-*", "/ns/ml/sa/amodel-a", false},
		{"/*", "/a", true},
		{"/*", "/a/b", false},
		{"/**", "/a/b/c", true},
		{"/a/**", "/a", true},
		{"/a/**", "/a/b/c", true},
		{"/a/**", "/ab", false},
		{"/a/**/z", "/a/z", true},
		{"/a/**/z", "/a/b/c/z", true},
		{"/a/**/z", "/a/b/cz", false},
		{"/a.b", "/axb", false}, // characters mean themselves
		{"/a.b", "/a.b", true},
		{"/*a*", "/bab", true},
		{"/*a*", "/bbb", false},
	} {
		p, err := compilePattern(tt.pattern)
		if err != nil {
			t.Errorf("%s: %v", tt.pattern, err)
		} else if p.match(tt.path) != tt.want {
			t.Errorf("%s with %s: %v", tt.pattern, tt.path, !tt.want)
		}
	}
	for _, bad := range []string{"", "a", "ns/a", "/", "//", "/a/", "/a//b", "/.", "/..", "/a b", "/a/***", "/a**", "/ü", "/a?", "/[a]", "/" + strings.Repeat("a", 2000)} {
		if _, err := compilePattern(bad); err == nil {
			t.Errorf("the pattern %.20q is taken", bad)
		}
	}
}

// The classic trap of backtracking matchers.
func TestA40PatternsTakeLinearTime(t *testing.T) {
	p, err := compilePattern("/" + strings.Repeat("*a", 200) + "b")
	if err != nil {
		t.Fatal(err)
	}
	start := time.Now()
	if p.match("/" + strings.Repeat("a", 2000)) {
		t.Error("matched")
	}
	if d := time.Since(start); d > 20*time.Second {
		t.Errorf("one match took %s", d)
	}
}

// FuzzPattern compares with a matcher that is too simple to be wrong.
func FuzzPattern(f *testing.F) {
	f.Add("/ns/*/sa/model-*", "/ns/ml/sa/model-a")
	f.Add("/a/**/z", "/a/b/z")
	f.Add("/**/**", "/a")
	f.Fuzz(func(t *testing.T, pat, path string) {
		if len(pat) > 24 || len(path) > 24 || spiffeid.ValidatePath(path) != nil || path == "" {
			return
		}
		p, err := compilePattern(pat)
		if err != nil {
			return
		}
		if want := simple(strings.Split(pat, "/")[1:], strings.Split(path, "/")[1:]); p.match(path) != want {
			t.Errorf("%q with %q: want %v", pat, path, want)
		}
	})
}

func simple(pattern, path []string) bool {
	switch {
	case len(pattern) == 0:
		return len(path) == 0
	case pattern[0] == "**":
		return simple(pattern[1:], path) || len(path) > 0 && simple(pattern, path[1:])
	case len(path) == 0:
		return false
	}
	return segment(pattern[0], path[0]) && simple(pattern[1:], path[1:])
}

func segment(pattern, s string) bool {
	switch {
	case pattern == "":
		return s == ""
	case pattern[0] == '*':
		return segment(pattern[1:], s) || s != "" && segment(pattern, s[1:])
	}
	return s != "" && pattern[0] == s[0] && segment(pattern[1:], s[1:])
}
