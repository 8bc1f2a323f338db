package e2e

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/legation-io/legation/test/e2e/world"
)

// resumed waits until a session has come back to its agent n times.
func resumed(t testing.TB, s *world.Session, n int) {
	t.Helper()
	world.Until(t, world.Patience, "the session is resumed", func() error {
		if s.Ended() {
			t.Fatalf("the session ended: %s", s.Tail(5))
		}
		if got := s.Count("session resumed"); got < n {
			return fmt.Errorf("resumed %d times, want %d: %s", got, n, s.Tail(2))
		}
		return nil
	})
}

func TestAnAgentRestartDisturbsNoProgram(t *testing.T) {
	t.Parallel()
	p := newPair(t)
	for n, end := range []struct {
		name string
		sig  syscall.Signal
	}{{"killed", syscall.SIGKILL}, {"stopped in order", syscall.SIGTERM}} {
		t.Run(end.name, func(t *testing.T) {
			alice, bob := p.alice.Program(), p.bob.Program()
			open := hold(t, p.outbound)
			p.node.Signal(end.sig)
			p.node.Exit(world.Patience)
			for range 5 { // nobody answers at the agent's socket now
				if err := errors.Join(p.get(), open.use()); err != nil {
					t.Fatalf("without an agent: %v", err)
				}
			}
			p.node.Start()
			resumed(t, p.alice, n+1)
			resumed(t, p.bob, n+1)
			if err := errors.Join(p.get(), open.use()); err != nil {
				t.Fatalf("with the next agent: %v", err)
			}
			if p.alice.Program() != alice || p.bob.Program() != bob {
				t.Fatal("a program was started again")
			}
		})
	}
	// The next agent is as much in charge as the first.
	open := hold(t, p.outbound)
	world.Until(t, world.Patience, "its Envoys are attached again", func() error {
		var st struct {
			Subscribers []struct {
				SPIFFEID string
				Behind   []string
			}
		}
		if err := p.node.JSON(&st, "status", "--node"); err != nil {
			return err
		}
		if len(st.Subscribers) != 2 {
			return fmt.Errorf("subscribers: %+v", st.Subscribers)
		}
		for _, s := range st.Subscribers {
			if len(s.Behind) > 0 {
				return fmt.Errorf("%s is behind with %v", s.SPIFFEID, s.Behind)
			}
		}
		return nil
	})
	r := p.revoke(world.ID("alice"))
	open.ended(t)
	p.stops()
	if r.ConnectionsClosed == 0 || len(r.Missing) > 0 {
		t.Errorf("%+v", r)
	}
}

// revocation is the answer of "legation revoke".
type revocation struct {
	CRLNumber                                              uint64
	Serials, Missing                                       []string
	Enforcing, Acknowledged, Delivered, Unknown            int
	ConnectionsClosed, ConnectionsFailed                   int
	CommittedMillis, AcknowledgedMillis, ConnectionsMillis float64
}

func (p *pair) revoke(args ...string) revocation {
	p.Helper()
	var r revocation
	p.JSON(&r, append([]string{"revoke"}, args...)...)
	return r
}

// cached waits until what the agent has is in its sealed cache: nothing was
// written there for longer than it waits before it writes.
func (p *pair) cached() {
	p.Helper()
	world.Until(p, world.Patience, "the sealed cache is written", func() error {
		files, err := filepath.Glob(filepath.Join(p.node.DataDir, "cache", "*.sealed"))
		if err != nil || len(files) < 3 {
			return fmt.Errorf("so far %v, %v", files, err)
		}
		for _, f := range files {
			st, err := os.Stat(f)
			if err != nil || time.Since(st.ModTime()) < time.Second {
				return fmt.Errorf("%s is being written: %v", f, err)
			}
		}
		return nil
	})
}

func TestWithoutAControlPlaneEverythingGoesOn(t *testing.T) {
	t.Parallel()
	p := newPair(t)
	watcher := p.Run("watcher", []string{p.As("alice"), "watch", p.node.Socket})
	watcher.Says("svid " + world.ID("alice"))
	p.cached()
	p.Server.Kill()
	if err := p.get(); err != nil {
		t.Fatalf("while the control plane is away: %v", err)
	}
	// The agent restarts, and serves from its sealed cache.
	p.node.Kill()
	p.node.Launch()
	p.node.Serves()
	resumed(t, p.alice, 1)
	resumed(t, p.bob, 1)
	fresh := p.Run("fresh", []string{p.As("alice"), "watch", p.node.Socket})
	fresh.Says("svid " + world.ID("alice"))
	if err := p.get(); err != nil {
		t.Fatalf("after the agent's restart without a control plane: %v", err)
	}
	// An Envoy that dies now comes up from the cache.
	world.Until(t, world.Patience, "a dead Envoy is back", func() error {
		if pid := p.bob.Envoy(); pid != 0 {
			return syscall.Kill(pid, syscall.SIGKILL)
		}
		return errors.New("no Envoy")
	})
	p.flows()
	// A new session of a known identity begins from the cache, too.
	p.alice.Kill()
	p.alice.Start()
	p.flows()
	st, err := p.node.Status()
	if err != nil || st.Connected || len(st.Problems) == 0 {
		t.Errorf("status tells nothing of the absent control plane: %+v, %v", st, err)
	}
	p.Server.Start()
	p.node.Connected()
	p.flows()
}
