package envoysds

import (
	"strings"
	"testing"

	"github.com/legation-io/legation/test/stand"
)

// overTCP replaces a file's sds_cluster by the one that the example gives for
// host and port.
func (r *rig) overTCP(name string) string {
	r.t.Helper()
	head, _, ok := strings.Cut(r.example(name), "  - name: sds_cluster\n")
	if !ok {
		r.t.Fatalf("%s has no sds_cluster", name)
	}
	var b strings.Builder
	b.WriteString(head)
	first := true
	for line := range strings.Lines(r.example("sds-cluster-tcp.yaml")) {
		switch {
		case strings.HasPrefix(line, "#"):
		case first:
			b.WriteString("  - " + line)
			first = false
		default:
			b.WriteString("    " + line)
		}
	}
	return b.String()
}

func TestEnvoysReachTheAgentByHostAndPortVerifiedByARootFile(t *testing.T) {
	r := newRig(t, "--sds-listen", "127.0.0.1:8234")
	r.Apply(r.example("identities.yaml"))
	backend := r.start(1101, "backend", r.overTCP("server.yaml"))
	r.start(1102, "web", r.overTCP("client.yaml"))
	r.works("mutual TLS works with secrets over TCP")
	_ = backend

	ask := sdsCall{TCP: r.sds, Roots: r.roots, Name: "localhost", Names: []string{"default"}}
	if _, err := r.as(1101, ask); err != nil {
		t.Errorf("a caller with an identity that verifies localhost is refused: %v", err)
	}
	t.Run("one that verifies another name is not taken in", func(t *testing.T) {
		other := ask
		other.Name = "agent.example.org"
		if _, err := r.as(1101, other); err == nil || !strings.Contains(err.Error(), "not agent.example.org") {
			t.Errorf("got %v", err)
		}
	})
	t.Run("a user without an entry gets nothing", func(t *testing.T) {
		if _, err := r.as(1103, ask); err == nil || !strings.Contains(err.Error(), "cannot serve") {
			t.Errorf("got %v", err)
		}
	})
}

// The connecting process is who the agent knows; one that shares its socket
// with another is neither of them.
func TestA20ATCPSocketThatASecondProcessHoldsGetsNoSecrets(t *testing.T) {
	r := newRig(t, "--sds-listen", "127.0.0.1:8234")
	r.Apply(r.example("identities.yaml"))
	ask := sdsCall{TCP: r.sds, Roots: r.roots, Name: "localhost", Names: []string{"default"}}
	stand.Until(t, "a caller that alone holds its socket is served", func() error {
		_, err := r.as(1101, ask)
		return err
	})
	ask.Shared = true
	if got, err := r.as(1101, ask); err == nil {
		t.Errorf("it was served %d secrets", len(got))
	}
	r.agent.Process.Logged("held by the processes")
}

func TestTheTCPDoorOpenedLaterGetsItsNameAtOnce(t *testing.T) {
	r := newRig(t)
	r.Apply(r.example("identities.yaml"))
	r.agent.Process.Stop()
	r.agent.Args = append(r.agent.Args, "--sds-listen", r.sds)
	r.agent.Start()
	r.agent.Process.Until("the certificate names localhost", func() error {
		_, err := r.as(1101, sdsCall{TCP: r.sds, Roots: r.roots, Name: "localhost", Names: []string{"default"}})
		return err
	})
}
