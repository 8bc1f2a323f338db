package agent

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"testing"
	"time"

	"github.com/legation-io/legation/internal/agent/sds"
	"github.com/legation-io/legation/internal/agent/svid"
	"github.com/legation-io/legation/internal/agent/upstream"
	"github.com/legation-io/legation/internal/attest/workload"
	"github.com/legation-io/legation/internal/distribute"
	"github.com/legation-io/legation/internal/server/node/nodetest"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// A20: a process that attested, opened a stream and became another program
// is handed nothing more, and what waits for it is taken away.
func TestA20AProcessThatBecameAnotherProgramIsHandedNothingMore(t *testing.T) {
	for _, row := range []struct {
		name    string
		becomes bool
	}{
		{"the same program goes on", false},
		{"another program gets nothing", true},
	} {
		t.Run(row.name, func(t *testing.T) {
			cmd := exec.Command("sh", "-c", "read go; exec sleep 60")
			stdin, err := cmd.StdinPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
			caller, err := workload.NewAttestor(workload.Params{}).FromPID(cmd.Process.Pid)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(caller.Close)
			// Attested once the shell runs: before, it is this test's own program.
			nodetest.Eventually(t, "the shell waits", func() bool {
				own, err := os.Readlink("/proc/self/exe")
				now, again := os.Readlink(fmt.Sprintf("/proc/%d/exe", cmd.Process.Pid))
				return err == nil && again == nil && now != own
			})
			if _, err := caller.Selectors(t.Context()); err != nil {
				t.Fatal(err)
			}
			if row.becomes {
				if _, err := stdin.Write([]byte("\n")); err != nil {
					t.Fatal(err)
				}
				nodetest.Eventually(t, "the shell became another program", func() bool { return caller.Recheck() != nil })
			}

			link := upstream.New(upstream.Params{TrustDomain: spiffeid.RequireTrustDomainFromString("example.org")})
			manager := svid.New(svid.Params{Views: link, Signer: link, HoldOff: 10 * time.Millisecond})
			engine := distribute.New(distribute.Params{})
			engine.Apply(distribute.Change{Scope: "sds/1/1", Type: sds.TypeSecret, Name: "default", Resource: distribute.NewResource(sds.TypeSecret, "default", []byte("x"))})
			d := newEnvoyDoor(manager, engine, link, time.Second)
			conn := &envoyConn{first: make(chan struct{}), crl: map[string]uint64{}, missing: map[string]string{}, statuses: map[string]distribute.Status{}}
			sub := manager.Subscribe([]string{"unix:uid:0"}, "uid/0")
			defer sub.Close()
			conn.sub = sub
			ctx, cancel := context.WithCancel(t.Context())
			done := make(chan struct{})
			go func() { defer close(done); d.publish(ctx, caller, conn, "sds/1/1", sub) }()
			select {
			case <-conn.first:
			case <-time.After(time.Minute):
				t.Error("nothing was said within a minute")
			}
			held := len(engine.List([]distribute.Scope{"sds/1/1"}, sds.TypeSecret))
			cancel()
			<-done
			if want := map[bool]int{false: 1, true: 0}[row.becomes]; held != want {
				t.Errorf("it is still given %d secrets, want %d", held, want)
			}
		})
	}
}
