package renewal

import (
	"strings"
	"testing"
)

func TestFilter(t *testing.T) {
	c := certificate("web")
	c.Metadata.Namespace, c.Metadata.Labels = "shop", map[string]string{"team": "web", "tier": "front", "empty": "", "example.org/x": "1"}
	c.Spec.IssuerRef = IssuerRef{Name: "letsencrypt", Kind: "ClusterIssuer"}
	for _, tt := range []struct {
		name string
		in   string
		want bool
	}{
		{"nothing passes all", "", true},
		{"a namespace", "namespaces: [shop]", true},
		{"another namespace", "namespaces: [bank]", false},
		{"a glob of namespaces", "namespaces: [bank, 'sh*']", true},
		{"a name", "names: ['w?b']", true},
		{"another name", "names: [db]", false},
		{"an issuer by name", "issuers: ['lets*']", true},
		{"an issuer by kind", "issuers: ['ClusterIssuer/*']", true},
		{"an issuer of another kind", "issuers: ['Issuer/*']", false},
		{"a label", "selector: team=web", true},
		{"a label, written twice", "selector: team==web", true},
		{"a label with another value", "selector: team=db", false},
		{"a label that is not", "selector: team!=db", true},
		{"a label that is there is not that value", "selector: nowhere!=db", true},
		{"a label in a set", "selector: 'tier in (back, front)'", true},
		{"a label not in a set", "selector: 'tier notin (back,front)'", false},
		{"a label that is there", "selector: tier", true},
		{"a label that is not there", "selector: '!tier'", false},
		{"an empty value", "selector: empty=", true},
		{"a label with a prefix", "selector: example.org/x=1", true},
		{"several must all hold", "selector: 'team=web,tier in (back)'", false},
		{"every part must hold", "selector: team=web\nnamespaces: [bank]", false},
		{"in JSON", `{"selector": "team=web", "names": ["*"]}`, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			f, err := ParseFilter([]byte(tt.in))
			if err != nil {
				t.Fatal(err)
			}
			m, err := f.compile()
			if err != nil || m.match(c) != tt.want {
				t.Errorf("%+v passes: %v (%v)", f, !tt.want, err)
			}
		})
	}
}

func TestAFilterThatCannotBeReadSaysWhy(t *testing.T) {
	for _, tt := range []struct{ name, in, want string }{
		{"an unknown field", "selectors: a", "line 1: selectors: there is no such field"},
		{"a glob that is none", "names: ['[a']", `names[0]: "[a" is no glob`},
		{"a selector with a wrong operator", "selector: 'a within (b)'", "is none of: key=value"},
		{"a selector that does not close", "selector: 'a in (b'", "is none of: key=value"},
		{"a selector with a key that is none", "selector: 'a b=c'", "is none of: key=value"},
		{"a selector that ends in a comma", "selector: 'a=b,'", "is none of: key=value"},
		{"two documents", "names: [a]\n---\nnames: [b]", "there are 2 documents"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if f, err := ParseFilter([]byte(tt.in)); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("%+v, %v; want %q", f, err, tt.want)
			}
		})
	}
}

func FuzzParseFilter(f *testing.F) {
	f.Add([]byte("selector: 'a=b,c in (d,e),!f'\nnames: ['*']"))
	f.Fuzz(func(t *testing.T, raw []byte) {
		if parsed, err := ParseFilter(raw); err == nil {
			m, err := parsed.compile()
			if err != nil {
				t.Fatal(err)
			}
			m.match(certificate("a"))
		}
	})
}
