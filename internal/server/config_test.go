package server

import (
	"strings"
	"testing"

	"github.com/legation-io/legation/internal/configfile"
)

func TestConfigReportsAllMistakesByTheKeyTyped(t *testing.T) {
	for _, tt := range []struct {
		name, in string
		want     []string
	}{
		{"the least that works", "trustDomain: example.org", nil},
		{"a trust domain is needed", "", []string{"trustDomain: missing"}},
		{"a trust domain with a scheme", "trustDomain: spiffe://a", []string{"without spiffe://"}},
		{"a cluster with a space", "trustDomain: a.org\ncluster: east 1", []string{"cluster: "}},
		{"a cluster", "trustDomain: a.org\ncluster: east-1", nil},
		{"an upper-case trust domain", "trustDomain: Example.org", []string{"lower-case"}},
		{"several mistakes at once", "trustDomain: a.org\nlisten: here\nlifetimes: {x509SVID: 100h}\nroles: [{role: king, subjects: [spiffe://b.org/x]}]\nlimits: {csrsPerSecond: 0}",
			[]string{"listen:", "lifetimes.x509SVID: is longer", "roles[0].role", "roles[0].namespace", `roles[0].subjects[0]: "spiffe://b.org/x" is not of trust domain`, "limits.csrsPerSecond"}},
		{"an issuing CA that outlives its root", "trustDomain: a.org\nlifetimes: {root: 10h, issuing: 20h, maxX509SVID: 5h, x509SVID: 1h}", []string{"lifetimes.issuing"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := DefaultConfig()
			if err := configfile.Parse("f", []byte(tt.in), &c); err != nil {
				t.Fatal(err)
			}
			err := c.Validate()
			if len(tt.want) == 0 {
				if err != nil {
					t.Fatal(err)
				}
				return
			}
			if err == nil {
				t.Fatal("accepted")
			}
			for _, w := range tt.want {
				if !strings.Contains(err.Error(), w) {
					t.Errorf("%q does not say %q", err, w)
				}
			}
		})
	}
}

func TestReloadListsWhatNeedsARestart(t *testing.T) {
	a, b := DefaultConfig(), DefaultConfig()
	b.Log.Level = "debug"
	if got := NeedsRestart(a, b); len(got) != 0 {
		t.Errorf("log needs a restart: %v", got)
	}
	b.Listen, b.Limits.StreamsPerNode = "x:1", 3
	if got := strings.Join(NeedsRestart(a, b), ","); got != "listen,limits" {
		t.Errorf("got %s", got)
	}
}
