package e2e

import (
	"errors"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/legation-io/legation/test/e2e/world"
)

// requests are made without a pause until stopped.
type requests struct {
	served  atomic.Int64
	failed  atomic.Int64
	example atomic.Value // of a failure
	stop    chan struct{}
	workers sync.WaitGroup
}

func (p *pair) load(t *testing.T, workers int) *requests {
	l := &requests{stop: make(chan struct{})}
	for range workers {
		l.workers.Go(func() {
			for {
				select {
				case <-l.stop:
					return
				default:
				}
				if err := p.get(); err != nil {
					l.failed.Add(1)
					l.example.Store(err)
					continue
				}
				l.served.Add(1)
			}
		})
	}
	t.Cleanup(l.end)
	return l
}

func (l *requests) end() {
	select {
	case <-l.stop:
	default:
		close(l.stop)
	}
	l.workers.Wait()
}

// serial of bob's certificate as alice's Envoy saw it last.
func (p *pair) serial(t *testing.T) string {
	t.Helper()
	open := hold(t, p.outbound)
	defer open.Close()
	serial := ""
	world.Until(t, world.Patience, "the connection is named", func() error {
		var list []connection
		if err := p.node.JSON(&list, "connections"); err != nil {
			return err
		}
		for _, c := range list {
			if c.Direction == "outbound" && c.PeerID == world.ID("bob") {
				serial = c.PeerSerial
				return nil
			}
		}
		return errors.New("nobody is on it")
	})
	return serial
}

func TestNoRequestFailsWhileTheAgentIsKilled(t *testing.T) {
	t.Parallel()
	p := newPair(t)
	open := hold(t, p.outbound)
	load := p.load(t, 3)
	served := func(what string) {
		t.Helper()
		at := load.served.Load()
		world.Until(t, world.Patience, what, func() error {
			if load.served.Load() < at+50 {
				return errors.New("too few requests were served")
			}
			return nil
		})
	}
	for n, row := range []struct {
		name    string
		offline bool // and no control plane
	}{{"once", false}, {"and again", false}, {"without a control plane", true}} {
		if row.offline {
			p.Server.Kill()
		}
		p.node.Signal(syscall.SIGKILL)
		p.node.Exit(world.Patience)
		served(row.name + ", no agent")
		p.node.Launch()
		p.node.Serves()
		resumed(t, p.alice, n+1)
		resumed(t, p.bob, n+1)
		served(row.name + ", the next agent")
		if row.offline {
			p.Server.Start()
			p.node.Connected()
			served("the control plane is back")
		}
	}
	load.end()
	if n := load.failed.Load(); n > 0 {
		t.Fatalf("%d of %d requests failed, such as: %v", n, n+load.served.Load(), load.example.Load())
	}
	if err := open.use(); err != nil {
		t.Errorf("a connection that was open all the time: %v", err)
	}
	// Certificates are still replaced: a revoked one by the next at once.
	before := p.serial(t)
	p.revoke("--serial", before)
	world.Until(t, world.Patience, "bob has another certificate", func() error {
		if err := p.get(); err != nil {
			return err
		}
		if p.serial(t) == before {
			return errors.New("still the old one")
		}
		return nil
	})
}

func TestARevocationMadeWhileTheAgentWasAwayEndsConnectionsWhenItIsBack(t *testing.T) {
	t.Parallel()
	p := newPair(t)
	open := hold(t, p.outbound)
	p.node.Signal(syscall.SIGKILL)
	p.node.Exit(world.Patience)
	p.CLI("revoke", world.ID("alice"), "--wait", "100ms") // it says that the node is missing
	if err := open.use(); err != nil {
		t.Fatalf("before the agent knows: %v", err)
	}
	p.node.Start()
	open.ended(t)
	p.stops()
}
