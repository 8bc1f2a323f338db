package e2e

import (
	"fmt"
	"math/rand/v2"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/legation-io/legation/test/e2e/world"
)

// The first start makes the authority, its keys and the store. Killed at any
// instant of that, the next start finishes it: no half authority, no second
// root, nothing to repair by hand.
func TestAFirstStartThatIsKilledIsFinishedByTheNext(t *testing.T) {
	t.Parallel()
	rounds := 10
	if world.Long() {
		rounds = 30
	}
	w := world.New(t)
	for round := range rounds {
		s := w.NewServer(fmt.Sprintf("cp%d", round))
		w.Server = s
		for range 3 {
			s.Launch()
			time.Sleep(time.Duration(rand.IntN(120)) * time.Millisecond) // a random instant
			if s.Ended() {
				t.Fatalf("round %d: a start after a kill ended by itself: %s", round, s.Tail(5))
			}
			s.Kill()
		}
		s.Start()
		roots := strings.Count(w.CLI("bundle", "show").Stdout, "BEGIN CERTIFICATE")
		if roots != 1 {
			t.Errorf("round %d: %d roots in the bundle, want 1", round, roots)
		}
		hash := w.CLI("bundle", "show", "--format", "hash").Stdout
		s.Kill()
		s.Start()
		if again := w.CLI("bundle", "show", "--format", "hash").Stdout; again != hash || hash == "" {
			t.Errorf("round %d: the root changed from %q to %q", round, hash, again)
		}
		s.Stop()
		os.RemoveAll(s.DataDir)
	}
}

// What was issued is good until it expires, without any control plane, and
// not a moment longer; and it all comes back by itself.
func TestTrafficEndsWithTheCertificatesAndComesBack(t *testing.T) {
	t.Parallel()
	p := newPair(t)
	p.Apply(world.IdentityTTL("alice", "n1", "15s", "unix:path:"+p.As("alice")))
	var expires time.Time
	short := func(connected bool) func() error {
		return func() error {
			var st struct {
				Connected  bool
				Identities []struct {
					SPIFFEID string
					NotAfter time.Time
				}
			}
			if err := p.node.JSON(&st, "status", "--node"); err != nil {
				return err
			}
			for _, i := range st.Identities {
				if i.SPIFFEID == world.ID("alice") && time.Until(i.NotAfter) < 20*time.Second && st.Connected == connected {
					expires = i.NotAfter
					return nil
				}
			}
			return fmt.Errorf("%+v", st)
		}
	}
	world.Until(t, world.Patience, "alice has a short certificate", short(true))
	p.flows()
	p.Server.Kill()
	world.Until(t, world.Patience, "no more certificates come", short(false)) // the last may have come meanwhile
	for time.Now().Before(expires) {
		if err := p.get(); err != nil && time.Now().Before(expires) {
			t.Fatalf("%s before the certificate ends: %v", time.Until(expires).Round(time.Millisecond), err)
		}
		time.Sleep(100 * time.Millisecond) // the rate of the requests
	}
	var late time.Duration // by which the last began that got through
	world.Until(t, world.Patience, "an expired certificate opens nothing", func() error {
		began := time.Since(expires)
		if p.get() == nil {
			late = began
			return fmt.Errorf("requests get through %s after the end", late.Round(time.Millisecond))
		}
		return nil
	})
	if late > 5*time.Second {
		t.Errorf("requests got through until %s after the certificate's end", late.Round(time.Millisecond))
	}
	p.Server.Start()
	p.flows()
}

// A bundle in a file pins as well as its hash.
func TestABundleFilePinsTheControlPlane(t *testing.T) {
	t.Parallel()
	w := world.Start(t)
	foreign := world.Start(t)
	pem := w.Write("bundle.pem", w.CLI("bundle", "show").Stdout, 0o644)
	wrong := w.Write("foreign.pem", foreign.CLI("bundle", "show").Stdout, 0o644)
	token := w.Write("token", w.Token("n1").Token, 0o600)
	refused := w.NewNode("n1", "--join-token-file", token, "--bundle-file", wrong)
	refused.Launch()
	world.Until(t, world.Patience, "the foreign root is told", func() error {
		if st, err := refused.Status(); err != nil || st.LastError == "" {
			return fmt.Errorf("%+v %v", st, err)
		} else if st.Connected {
			t.Fatal("a control plane under another root is trusted")
		}
		return nil
	})
	refused.Stop()
	good := w.NewNode("n1", "--join-token-file", token, "--bundle-file", pem)
	good.DataDir = w.Path("n1-good")
	good.Start()
}
