package agent

import (
	"strings"
	"testing"

	"github.com/legation-io/legation/internal/configfile"
)

func TestConfigReportsAllMistakesByTheKeyTyped(t *testing.T) {
	hash := "bundleHash: sha256:" + strings.Repeat("ab", 32) + "\n"
	for _, tt := range []struct {
		name, in string
		want     []string
	}{
		{"the least that works", "trustDomain: example.org\nservers: [a:1]\n" + hash, nil},
		{"no pinned bundle and no hash", "trustDomain: example.org\nservers: [a:1]", []string{"bundleHash: missing"}},
		{"a hash that is none", "trustDomain: example.org\nservers: [a:1]\nbundleHash: sha256:zz", []string{"64 hex digits"}},
		{"SDS beyond loopback", "trustDomain: example.org\nservers: [a:1]\nsds: {listen: '0.0.0.0:1'}\n" + hash, []string{"sds.listen", "loopback"}},
		{"several mistakes at once", "servers: [a]\ncacheSize: 0\nsocket: x\nenvoy: {concurrency: 0, logLevel: loud}\nbundleFile: /does/not/exist", []string{"trustDomain: missing", "servers[0]", "cacheSize", "socket:", "envoy.concurrency", "envoy.logLevel", "bundleFile"}},
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
