package server

import (
	"testing"

	adminv1 "github.com/legation-io/legation/api/admin/v1"
	nodev1 "github.com/legation-io/legation/api/node/v1"
	"github.com/legation-io/legation/internal/catalog"
	"github.com/legation-io/legation/internal/store/memory"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

func TestANodeLearnsOfOthersEntriesOnlyThatTheyAreElsewhere(t *testing.T) {
	const declared = `
apiVersion: legation.io/v1alpha1
kind: WorkloadIdentity
metadata: {name: near}
spec: {node: here, selectors: ["unix:uid:1", "unix:path:/bin/near"]}
---
apiVersion: legation.io/v1alpha1
kind: WorkloadIdentity
metadata: {name: elsewhere}
spec: {node: there, selectors: ["unix:uid:1"]}
---
apiVersion: legation.io/v1alpha1
kind: WorkloadIdentity
metadata: {name: secret}
spec: {node: there, selectors: ["unix:uid:1", "unix:path:/bin/secret"], sdsNames: [vault-cert]}
`
	s := memory.New()
	defer s.Close()
	c, err := catalog.Open(t.Context(), catalog.Params{Store: s, TrustDomain: spiffeid.RequireTrustDomainFromString("example.org")})
	if err != nil {
		t.Fatal(err)
	}
	running := make(chan struct{})
	go func() { defer close(running); _ = c.Run(t.Context()) }()
	t.Cleanup(func() { <-running })
	if _, problems, err := c.Apply(t.Context(), catalog.ApplyParams{Documents: []*adminv1.Document{{File: "f", Content: []byte(declared)}}}); err != nil || len(problems) > 0 {
		t.Fatal(problems, err)
	}
	for _, tt := range []struct {
		name string
		req  *nodev1.ExplainRequest
		want []string
	}{
		{"own entries that come near, and others where the node alone is wrong", &nodev1.ExplainRequest{Selectors: []string{"unix:uid:1"}}, []string{"default/elsewhere", "default/near"}},
		{"an SDS name by its very name", &nodev1.ExplainRequest{SdsName: "vault-cert"}, []string{"default/secret"}},
		{"nothing for a guess", &nodev1.ExplainRequest{Selectors: []string{"unix:path:/bin/other"}}, nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, err := (&server{catalog: c}).explain(t.Context(), "here", tt.req)
			if err != nil {
				t.Fatal(err)
			}
			var names []string
			for _, c := range got {
				names = append(names, c.Entry)
				if c.Node == "there" && len(c.Missing) > 0 {
					t.Errorf("%s tells the selectors %v of another node's entry", c.Entry, c.Missing)
				}
			}
			if len(names) != len(tt.want) {
				t.Fatalf("got %v, want %v", names, tt.want)
			}
			for i := range names {
				if names[i] != tt.want[i] {
					t.Fatalf("got %v, want %v", names, tt.want)
				}
			}
		})
	}
}
