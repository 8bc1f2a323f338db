package e2e

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/legation-io/legation/test/e2e/world"
)

// served is the serial that a session's Envoy has now, "" while it has none.
func (p *pair) served(id string) string {
	st, err := p.node.Status()
	if err != nil {
		return ""
	}
	for _, i := range st.Identities {
		if i.SPIFFEID == id {
			return i.Serial
		}
	}
	return ""
}

func TestA35RevokingASerialEndsItsConnectionsAndBringsANewKey(t *testing.T) {
	t.Parallel()
	p := newPair(t)
	bystander := p.bystander()
	open := hold(t, p.outbound)
	serial := p.served(world.ID("alice"))
	started := time.Now()
	r := p.revoke("--serial", serial, "--reason", "lost")
	t.Logf("took %d ms: %+v", time.Since(started).Milliseconds(), r)
	if len(r.Serials) != 1 || r.Serials[0] != serial || len(r.Missing) != 0 || r.Acknowledged < 3 || r.Unknown != 0 {
		t.Errorf("%+v; want one serial, three Envoys that acknowledge, nobody missing", r)
	}
	if r.ConnectionsClosed == 0 || r.ConnectionsFailed != 0 || r.ConnectionsMillis > 1000 {
		t.Errorf("connections: %+v", r)
	}
	open.ended(t)
	if err := bystander.use(); err != nil {
		t.Errorf("a bystander's connection was ended, too: %v", err)
	}
	p.flows() // under a new key
	world.Until(t, world.Patience, "alice has another certificate", func() error {
		if now := p.served(world.ID("alice")); now == "" || now == serial {
			return fmt.Errorf("serial %q", now)
		}
		return nil
	})
	var shown struct {
		Revoked          bool
		RevocationReason string
	}
	p.JSON(&shown, "cert", "show", serial)
	if !shown.Revoked || shown.RevocationReason != "lost" {
		t.Errorf("the inventory says %+v", shown)
	}
}

// bystander is an open connection of a third identity to bob.
func (p *pair) bystander() held {
	p.Helper()
	outbound := p.IP() + ":9001"
	p.Apply(world.Identity("mallory", "n1", "unix:path:"+p.As("mallory")))
	p.node.Run("mallory", nil, []string{"--outbound", "bob:8080=" + outbound}, p.As("mallory"), "serve", p.IP()+":8080", "mallory")
	world.Until(p, world.Patience, "the bystander reaches bob", func() error { return get(outbound, "bob") })
	return hold(p, outbound)
}

func TestA35RevokingAnIdentityBlocksItUntilLifted(t *testing.T) {
	t.Parallel()
	p := newPair(t)
	bystander := p.bystander()
	open := hold(t, p.outbound)
	r := p.revoke(world.ID("alice"), "--reason", "demo")
	if len(r.Serials) != 1 || len(r.Missing) != 0 || r.ConnectionsClosed == 0 {
		t.Errorf("%+v", r)
	}
	open.ended(t)
	p.stops()
	if err := bystander.use(); err != nil {
		t.Errorf("a bystander's connection was ended, too: %v", err)
	}
	// No new session, no Workload API, also after a restart of the agent.
	for range 2 {
		s := p.node.NewSession("again", nil, []string{"--outbound", "bob:8080", "--ready-timeout", "5s"}, p.As("alice"), "exit", "0")
		s.Launch()
		if code := s.Exit(world.Patience); code == 0 {
			t.Error("a session of a blocked identity began")
		}
		p.node.Kill()
		p.node.Start()
	}
	if p.get() == nil {
		t.Error("requests get through again")
	}
	p.JSON(nil, "lift", world.ID("alice"))
	p.flows()
}

func TestA35RevokingANodeTakesAllOfIt(t *testing.T) {
	t.Parallel()
	p := newPair(t)
	open := hold(t, p.outbound)
	r := p.revoke("--node", "n1")
	if len(r.Serials) < 3 {
		t.Errorf("%+v; want the node's own certificate and those of two programs", r)
	}
	open.ended(t)
	var certs []struct{ Revoked bool }
	p.JSON(&certs, "cert", "list", "--node", "n1")
	for _, c := range certs {
		if !c.Revoked {
			t.Errorf("a certificate of the node is not revoked: %+v", certs)
		}
	}
}

func TestARevocationNamesWhoIsMissing(t *testing.T) {
	t.Parallel()
	p := newPair(t)
	n2 := p.Join("n2")
	p.Apply(world.Identity("far", "n2", "unix:path:"+p.As("far")))
	n2.Run("far", nil, []string{"--outbound", "bob:8080"}, p.As("far"), "serve", p.IP()+":8080", "far")
	n2.Signal(syscall.SIGSTOP)
	result := p.CLI("revoke", world.ID("alice"), "--wait", "1s", "-o", "json")
	r := p.revokeOutput(result)
	if result.Code != 0 && result.Code != 1 {
		t.Errorf("exit code %d: %s", result.Code, result.Stderr)
	}
	if !slices.ContainsFunc(r.Missing, func(m string) bool { return strings.Contains(m, "n2") }) {
		t.Errorf("the stopped node is not named as missing: %+v", r)
	}
	if slices.ContainsFunc(r.Missing, func(m string) bool { return strings.Contains(m, "n1") }) {
		t.Errorf("a node that is well is named as missing: %+v", r)
	}
	n2.Signal(syscall.SIGCONT)
	world.Until(t, world.Patience, "nobody is behind once it goes on", func() error {
		var st struct {
			Behind []struct{ Node, Subscriber, Resource string }
		}
		if err := p.TryJSON(&st, "status"); err != nil {
			return err
		}
		if len(st.Behind) > 0 {
			return fmt.Errorf("behind: %+v", st.Behind)
		}
		return nil
	})
}

func (p *pair) revokeOutput(r world.Result) revocation {
	p.Helper()
	var v revocation
	if err := decode(r.Stdout, &v); err != nil {
		p.Fatal(errors.Join(err, errors.New(r.Stderr)))
	}
	return v
}
