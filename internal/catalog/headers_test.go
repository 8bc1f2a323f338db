package catalog

import (
	"slices"
	"strings"
	"testing"

	adminv1 "github.com/legation-io/legation/api/admin/v1"
)

func TestWhichPortsSayWhoCalls(t *testing.T) {
	const rest = `spec: {selector: {app: web}, ports: [{name: http, port: 80, targetPort: 8080}, {name: db, port: 5432}]}
---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {name: web, namespace: shop}
spec: {address: 10.0.0.9, labels: {app: web}, serviceAccount: web}
---
apiVersion: legation.io/v1alpha1
kind: WorkloadIdentity
metadata: {name: web, namespace: shop}
spec: {node: web-1, selectors: ["unix:uid:1000"]}
`
	for name, tc := range map[string]struct {
		annotation string
		want       []uint32
		problem    string
	}{
		"none":                   {"", nil, ""},
		"all":                    {`, annotations: {legation.io/identity-headers: "true"}`, []uint32{5432, 8080}, ""},
		"by name":                {`, annotations: {legation.io/identity-headers: http}`, []uint32{8080}, ""},
		"by number":              {`, annotations: {legation.io/identity-headers: "80"}`, []uint32{8080}, ""},
		"both":                   {`, annotations: {legation.io/identity-headers: "http, 5432"}`, []uint32{5432, 8080}, ""},
		"a port that is not one": {`, annotations: {legation.io/identity-headers: "8080"}`, nil, `"8080" is no port of this Service`},
		"a word":                 {`, annotations: {legation.io/identity-headers: "yes"}`, nil, `"yes" is no port of this Service`},
		"nothing":                {`, annotations: {legation.io/identity-headers: ""}`, nil, `"" is no port of this Service`},
	} {
		t.Run(name, func(t *testing.T) {
			c := open(t, newStore(t), Limits{})
			content := "apiVersion: v1\nkind: Service\nmetadata: {name: web, namespace: shop" + tc.annotation + "}\n" + rest
			_, problems, err := c.Apply(t.Context(), ApplyParams{Documents: []*adminv1.Document{{File: "f", Content: []byte(content)}}})
			if err != nil {
				t.Fatal(err)
			}
			if tc.problem != "" {
				if len(problems) != 1 || !strings.Contains(problems[0].Message, tc.problem) || problems[0].Fix == "" {
					t.Errorf("problems %v", problems)
				}
				return
			}
			s, _ := c.Snapshot()
			e, ok := s.EntryByName("web-1", "shop/web")
			if !ok || !slices.Equal(e.IdentityHeaderPorts, tc.want) {
				t.Errorf("%v, want %v; problems %v", e.GetIdentityHeaderPorts(), tc.want, problems)
			}
		})
	}
	t.Run("a change of the annotation changes the entry", func(t *testing.T) {
		c := open(t, newStore(t), Limits{})
		apply(t, c, "apiVersion: v1\nkind: Service\nmetadata: {name: web, namespace: shop}\n"+rest)
		apply(t, c, "apiVersion: v1\nkind: Service\nmetadata: {name: web, namespace: shop, annotations: {legation.io/identity-headers: http}}\n"+rest)
		s, _ := c.Snapshot()
		if e, _ := s.EntryByName("web-1", "shop/web"); !slices.Equal(e.GetIdentityHeaderPorts(), []uint32{8080}) {
			t.Errorf("%v", e.GetIdentityHeaderPorts())
		}
	})
}
