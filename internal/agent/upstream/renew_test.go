package upstream

import (
	"strings"
	"testing"
	"time"

	nodev1 "github.com/legation-io/legation/api/node/v1"
	"github.com/legation-io/legation/internal/fault"
	"github.com/legation-io/legation/internal/server/node/nodetest"
)

func TestIdentityIsRenewedAtHalfLife(t *testing.T) {
	p := nodetest.New(t)
	p.SetEntry("web-1", webEntry())
	a := newAgent(t, p)
	a.start()
	a.until("synced", synced)
	first, _ := a.Identity()
	serial := first.Serial
	for range 3 {
		// Half of an hour-long life, give or take a tenth.
		// A restart, since a running agent looks at a clock that jumps every 30 s.
		p.Clock.Jump(40 * time.Minute)
		_ = a.stop()
		a.params.Prover = nil
		a.start()
		nodetest.Eventually(t, "renewed", func() bool {
			id, _ := a.Identity()
			return id != nil && id.Serial != serial && id.ID == first.ID
		})
		id, _ := a.Identity()
		if serial = id.Serial; id.Key == first.Key {
			t.Fatal("the key was not renewed")
		}
		nodetest.Eventually(t, "linked under the new certificate", func() bool {
			c := p.Server.Connected()
			return len(c) == 1 && c[0].Serial == serial
		})
		csr, _ := nodetest.NewCSR(t, nil)
		if _, err := a.SignX509(t.Context(), []*nodev1.X509Item{{Entry: "default/web", SpiffeId: webEntry().SpiffeId, Csr: csr}}); err != nil {
			t.Fatal(err)
		}
	}
}

func TestRollOverLosesNoCall(t *testing.T) {
	p := nodetest.New(t)
	p.SetEntry("web-1", webEntry())
	p.Authority.SetTTL(10 * time.Second) // due after five
	a := newAgent(t, p)
	a.start()
	a.until("synced", synced)
	csr, _ := nodetest.NewCSR(t, nil)
	renewed := func() bool {
		rec, err := p.Registry.Get(t.Context(), "web-1")
		if err != nil {
			t.Fatal(err)
		}
		return rec.Superseded != ""
	}
	deadline := time.Now().Add(time.Minute)
	for calls, after := 0, 0; after < 100; calls++ {
		res, err := a.SignX509(t.Context(), []*nodev1.X509Item{{Entry: "default/web", SpiffeId: webEntry().SpiffeId, Csr: csr}})
		if err != nil || res[0].GetRefusal() != nil {
			t.Fatalf("call %d: %v, %v", calls, res, err)
		}
		if renewed() {
			after++
		} else if time.Now().After(deadline) {
			t.Fatal("nothing was renewed")
		}
		time.Sleep(10 * time.Millisecond) // within what a node may ask
	}
}

func TestBannedAgentKeepsItsViewAndSaysWhy(t *testing.T) {
	p := nodetest.New(t)
	p.SetEntry("web-1", webEntry())
	a := newAgent(t, p)
	a.start()
	a.until("synced", synced)
	if _, err := p.Registry.Ban(t.Context(), "web-1", "stolen", "test"); err != nil {
		t.Fatal(err)
	}
	v := a.until("cut", func(v *View) bool { return !v.Connected && strings.Contains(v.LastError, "banned (stolen)") })
	if !v.Synced || len(v.Entries) != 1 {
		t.Fatal("the view is gone")
	}
	if _, err := p.Registry.Lift(t.Context(), "web-1", "test"); err != nil {
		t.Fatal(err)
	}
	a.until("back", synced)
}

func TestExpiredIdentityAttestsAgain(t *testing.T) {
	p := nodetest.New(t)
	a := newAgent(t, p)
	a.start()
	a.until("synced", synced)
	_ = a.stop()
	p.Clock.Jump(2 * time.Hour)
	p.Stop()
	p.Start() // with a fresh certificate of its own
	b := newAgent(t, p)
	b.params.Cache = a.params.Cache
	b.start()
	b.until("synced", synced)
}

func TestCorruptCacheIsSetAsideWithAReason(t *testing.T) {
	p := nodetest.New(t)
	p.SetEntry("web-1", webEntry())
	a := newAgent(t, p)
	for _, name := range []string{identityName, viewName, configName} {
		if err := a.params.Cache.Write(name, []byte("\x05garbage and more of it")); err != nil {
			t.Fatal(err)
		}
	}
	a.start()
	if v := a.until("synced", synced); len(v.Entries) != 1 {
		t.Fatal(v.Entries)
	}
}

func TestFullDiskDoesNotStopTheAgent(t *testing.T) {
	p := nodetest.New(t)
	a := newAgent(t, p)
	a.params.Cache.(*memoryCache).fail = fault.New(fault.Limited, "no space left on device")
	a.start()
	a.until("synced", synced)
}
