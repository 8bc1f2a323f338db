package e2e

import (
	"errors"
	"fmt"
	"net"
	"strings"
	"testing"

	"github.com/legation-io/legation/test/e2e/world"
)

// What listens decides under which identity a connection goes on: an explicit
// port is one program's, and whoever comes second is told so before its
// program starts.
func TestAPortThatIsTakenIsRefusedAtOnce(t *testing.T) {
	t.Parallel()
	p := newPair(t)
	other := p.As("other")
	p.Apply(world.Identity("other", "n1", "unix:path:"+other))
	foreign, err := net.Listen("tcp", p.IP()+":0")
	if err != nil {
		t.Fatal(err)
	}
	defer foreign.Close()
	for name, row := range map[string]struct {
		flags []string
		says  []string
	}{
		"the outbound port of another session": {[]string{"--outbound", "bob:8080=" + p.outbound}, []string{p.outbound, "is taken by", world.ID("alice")}},
		"the inbound port of another session":  {[]string{"--inbound", p.inbound + "=" + p.app}, []string{p.inbound, "is taken by", world.ID("bob")}},
		"a port of another session and a free one": {[]string{"--outbound", "bob:8080=" + p.IP() + ":9001", "--outbound", "bob:8080=" + p.outbound},
			[]string{p.outbound, "is taken by", world.ID("alice")}},
		"an address that another session has with all others": {[]string{"--inbound", "0.0.0.0:15443=" + p.app}, []string{"0.0.0.0:15443", "is taken by"}},
		"a port of a program that is no Envoy":                {[]string{"--outbound", "bob:8080=" + foreign.Addr().String()}, []string{foreign.Addr().String(), "is taken by another program"}},
		"an address that is no machine's here":                {[]string{"--inbound", "192.0.2.1:15443=" + p.app}, []string{"192.0.2.1:15443", "Cannot assign requested address"}},
	} {
		t.Run(name, func(t *testing.T) {
			s := p.node.NewSession("other-"+strings.ReplaceAll(name, " ", "-"), nil, append(row.flags, "--ready-timeout", "24h"), other, "signals")
			s.Launch()
			if code := s.Exit(world.Patience); code != 1 {
				t.Errorf("exit code %d, want 1", code)
			}
			out := s.Output()
			for _, text := range row.says {
				if !strings.Contains(out, text) {
					t.Errorf("it does not say %q: %s", text, s.Tail(5))
				}
			}
			if strings.Contains(out, "waiting") || strings.Contains(out, "program started") {
				t.Error("the program was started")
			}
		})
	}
	for range 20 {
		if err := p.get(); err != nil {
			t.Fatalf("whoever had the port was disturbed: %v", err)
		}
	}
}

// Two that bind before either listens: Linux lets them, and one is refused by
// listen(2), after Envoy has acknowledged its listener.
func TestOfTwoSessionsThatWantOnePortAtOnceOneStarts(t *testing.T) {
	t.Parallel()
	w, n := solo(t)
	for round := range 3 {
		at := w.IP() + ":9001"
		var both []*world.Session
		for _, name := range []string{"one", "two"} {
			s := n.NewSession(name+fmt.Sprint(round), nil, []string{"--outbound", "nobody:8080=" + at, "--outbound", "nobody:8080=" + w.IP() + ":9002", "--ready-timeout", "24h"}, w.As("any"), "signals")
			s.Launch()
			both = append(both, s)
		}
		world.Until(t, world.Patience, "one has started and the other ended", func() error {
			if both[0].Ended() || both[1].Ended() {
				return nil
			}
			return errors.New("both are starting")
		})
		loser, winner := both[0], both[1]
		if !loser.Ended() {
			loser, winner = winner, loser
		}
		winner.Started(1)
		if code := loser.Exit(world.Patience); code != 1 || !strings.Contains(loser.Output(), at) || loser.Count("program started") > 0 {
			t.Errorf("exit code %d: %s", code, loser.Tail(5))
		}
		winner.Stop()
	}
}
