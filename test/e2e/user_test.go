package e2e

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/legation-io/legation/test/e2e/world"
)

func TestAProgramRunsAsAnotherUserAndIsThatUserToAttestation(t *testing.T) {
	t.Parallel()
	w := world.Start(t)
	node := w.Join("n1")
	w.Apply(world.Identity("bob", "n1", "unix:path:"+w.As("bob"), "unix:uid:65001", "unix:gid:65002") +
		world.Identity("root", "n1", "unix:path:"+w.As("bob"), "unix:uid:0"))
	ip := w.IP()
	s := node.Run("bob", nil, []string{"--user", "65001:65002", "--inbound", ip + ":15443=" + ip + ":8080"}, w.As("bob"), "serve", ip+":8080", "bob")
	if out := s.Tail(20); !strings.Contains(out, world.ID("bob")) {
		t.Errorf("it is not attested as that user: %s", out)
	}
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", s.Program()))
	if err != nil {
		t.Fatal(err)
	}
	status := map[string]string{}
	for line := range strings.Lines(string(raw)) {
		key, value, _ := strings.Cut(line, ":")
		status[key] = strings.Join(strings.Fields(value), " ")
	}
	for key, want := range map[string]string{
		"Uid": "65001 65001 65001 65001", "Gid": "65002 65002 65002 65002", "Groups": "",
		"CapEff": "0000000000000000", "CapPrm": "0000000000000000", "CapAmb": "0000000000000000", "NoNewPrivs": "0",
	} {
		if status[key] != want {
			t.Errorf("%s is %q, want %q", key, status[key], want)
		}
	}
}
