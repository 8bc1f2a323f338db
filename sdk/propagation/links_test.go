package propagation

import (
	"os/exec"
	"strings"
	"testing"
)

// Who speaks HTTP only links no gRPC, and nobody links what only others need.
func TestWhatIsLinked(t *testing.T) {
	for folder, not := range map[string][]string{
		".":                 {"google.golang.org/grpc", "github.com/open-policy-agent/opa", "github.com/caddyserver/certmagic"},
		"../jwtcheck":       {"google.golang.org/grpc", "github.com/prometheus/client_golang", "net/http"},
		"./grpcpropagation": {"github.com/open-policy-agent/opa", "github.com/caddyserver/certmagic"},
		"./tokens":          {"github.com/open-policy-agent/opa", "github.com/caddyserver/certmagic"},
	} {
		out, err := exec.Command("go", "list", "-deps", folder).Output()
		if err != nil {
			t.Fatal(err)
		}
		for p := range strings.FieldsSeq(string(out)) {
			for _, n := range not {
				if p == n || strings.HasPrefix(p, n+"/") {
					t.Errorf("%s links %s", folder, p)
				}
			}
		}
	}
}
