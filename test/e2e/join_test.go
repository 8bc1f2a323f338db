package e2e

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/legation-io/legation/test/e2e/world"
)

func TestAnAgentThatIsMisconfiguredDoesNotStart(t *testing.T) {
	t.Parallel()
	w := world.Start(t)
	token := w.Token("n1")
	file := w.Write("token", token.Token, 0o600)
	for _, row := range []struct {
		name  string
		flags []string
		says  string
	}{
		{"without a pinned bundle or hash", []string{"--join-token-file", file}, "bundleHash: missing, and bundleFile too"},
		{"with a hash that is none", []string{"--join-token-file", file, "--bundle-hash", "sha256:abc"}, `bundleHash: "sha256:abc" is not sha256:<64 hex digits>`},
		{"with a bundle file that is absent", []string{"--join-token-file", file, "--bundle-file", w.Path("nothing.pem")}, "bundleFile: "},
		{"with a bundle file that holds no certificate", []string{"--join-token-file", file, "--bundle-file", file}, "no CERTIFICATE block"},
		{"with an empty token file", []string{"--join-token-file", w.Write("empty", "", 0o600), "--bundle-hash", token.BundleHash}, "is empty"},
		{"with a flag that it does not know", []string{"--insecure"}, "unknown flag: --insecure"},
	} {
		t.Run(row.name, func(t *testing.T) {
			n := w.NewNode("n1", row.flags...)
			r := w.Command(n.Argv()...)
			if r.Code != 2 || !strings.Contains(r.Stderr, row.says) {
				t.Fatalf("exit code %d, want 2; said %q, want %q", r.Code, r.Stderr, row.says)
			}
		})
	}
}

func TestATokenAdmitsOnce(t *testing.T) {
	t.Parallel()
	w := world.Start(t)
	good := w.Token("n1")
	short := w.Token("n3", "--ttl", "1s")
	guess := make([]byte, 32)
	rand.Read(guess)

	first := w.NewNode("n1", "--join-token-file", w.Write("t1", good.Token, 0o600), "--bundle-hash", good.BundleHash)
	first.Start()
	time.Sleep(time.Until(time.Now().Truncate(time.Second).Add(2100 * time.Millisecond))) // past the token of one second
	for _, row := range []struct{ name, token string }{
		{"one that was used already", good.Token},
		{"one that has expired", short.Token},
		{"one that was guessed", hex.EncodeToString(guess)},
		{"one with a byte changed", flip(w.Token("n4").Token)},
		{"one megabyte of nonsense", strings.Repeat("x", 1<<20)},
	} {
		t.Run(row.name+" is refused", func(t *testing.T) {
			thief := w.NewNode("thief", "--join-token-file", w.Write("stolen", row.token, 0o600), "--bundle-hash", good.BundleHash)
			thief.Launch()
			world.Until(t, world.Patience, "the agent tells why it is not admitted", func() error {
				st, err := thief.Status()
				if err != nil && !thief.Ended() {
					return err
				}
				if st.Connected {
					t.Fatal("it was admitted")
				}
				if !thief.Ended() && st.LastError == "" {
					return errors.New("no reason yet")
				}
				return nil
			})
			if out := thief.Output(); strings.Contains(out, row.token) {
				t.Error("the token is in the agent's log")
			}
			thief.Stop()
			os.Remove(thief.Log)
			os.RemoveAll(thief.DataDir)
		})
	}
	var nodes []struct{ Name string }
	w.JSON(&nodes, "node", "list")
	if len(nodes) != 1 || nodes[0].Name != "n1" {
		t.Fatalf("nodes are %v, want n1 alone", nodes)
	}
	if st, err := first.Status(); err != nil || !st.Connected {
		t.Fatalf("the node that was admitted: %+v, %v", st, err)
	}
}

func flip(token string) string {
	b := []byte(token)
	last := len(b) - 1
	if b[last] ^= 1; b[last] < '0' || b[last] > 'z' {
		b[last] = 'a'
	}
	return string(b)
}

func TestAControlPlaneThatIsNotTheTrueOneIsRefused(t *testing.T) {
	t.Parallel()
	w := world.Start(t)
	token := w.Token("n1")
	other := "sha256:" + strings.Repeat("00", 32)
	n := w.NewNode("n1", "--join-token-file", w.Write("t1", token.Token, 0o600), "--bundle-hash", other)
	n.Launch()
	world.Until(t, world.Patience, "the agent says that this is not its control plane", func() error {
		if out := n.Output(); !regexp.MustCompile(`(?i)hash|root|bundle`).MatchString(after(out, "agent serves")) {
			return fmt.Errorf("so far: %s", n.Tail(3))
		}
		return nil
	})
	if st, err := n.Status(); err == nil && st.Connected {
		t.Fatal("it trusts a control plane that it did not pin")
	}
	n.Stop()
	// The token was not spent on the wrong door: it still admits.
	good := w.NewNode("n1", "--join-token-file", w.Path("t1"), "--bundle-hash", token.BundleHash)
	good.DataDir = w.Path("fresh")
	good.Start()
}

func after(s, mark string) string {
	_, rest, _ := strings.Cut(s, mark)
	return rest
}

func TestABannedNodeIsOutAtOnce(t *testing.T) {
	t.Parallel()
	p := newPair(t)
	var banned struct{ RevokedCertificates int }
	p.JSON(&banned, "node", "ban", "n1", "--reason", "stolen")
	if banned.RevokedCertificates < 3 {
		t.Errorf("%d certificates were revoked, want the node's own and two of its workloads", banned.RevokedCertificates)
	}
	world.Until(t, world.Patience, "the node's streams end", func() error {
		var n struct{ Banned, Connected bool }
		p.JSON(&n, "node", "show", "n1")
		if !n.Banned || n.Connected {
			return fmt.Errorf("%+v", n)
		}
		return nil
	})
	// It can renew nothing and attest nothing, also after a restart.
	p.node.Kill()
	p.node.Launch()
	world.Until(t, world.Patience, "the agent learns that its node is banned", func() error {
		st, err := p.node.Status()
		if err != nil {
			return err
		}
		if st.Connected || !strings.Contains(st.LastError, "ban") && !strings.Contains(st.LastError, "revoked") {
			return fmt.Errorf("connected %v, last error %q", st.Connected, st.LastError)
		}
		return nil
	})
	p.node.Stop()
	// Unbanned, a new token brings it back.
	p.JSON(nil, "node", "unban", "n1")
	p.node.Admit()
	p.node.Start()
	for _, session := range []*world.Session{p.bob, p.alice} {
		session.Stop()
		session.Start()
	}
	p.flows()
}
