package agent

import (
	"fmt"
	"testing"
	"time"

	"github.com/legation-io/legation/internal/agent/sds"
	"github.com/legation-io/legation/internal/agent/svid"
	"github.com/legation-io/legation/internal/agent/upstream"
	"github.com/legation-io/legation/internal/distribute"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// doorWith has one Envoy attached, without a stream behind it.
func doorWith(t *testing.T, conn *envoyConn) *envoyDoor {
	t.Helper()
	link := upstream.New(upstream.Params{TrustDomain: spiffeid.RequireTrustDomainFromString("example.org")})
	manager := svid.New(svid.Params{Views: link, Signer: link})
	conn.sub = manager.Subscribe([]string{"unix:uid:0"}, "uid/0")
	t.Cleanup(conn.sub.Close)
	conn.statuses, conn.missing = map[string]distribute.Status{}, map[string]string{}
	d := newEnvoyDoor(manager, distribute.New(distribute.Params{}), link, time.Second)
	d.conns["sds/1/1"] = conn
	return d
}

func said(name, sent, acked string) []distribute.Status {
	return []distribute.Status{{Subscriber: "sds/1/1", Type: sds.TypeSecret, Name: name, Sent: sent, Acked: acked}}
}

func TestOnlyTheContextThatWasAcknowledgedCountsForTheCRL(t *testing.T) {
	d := doorWith(t, &envoyConn{crl: map[string]uint64{"context-1": 1, "context-2": 2, "all-2": 2}})
	number := func(name string) uint64 {
		for _, line := range d.states() {
			if line.Name == name {
				return line.AckedCrlNumber
			}
		}
		return 0
	}
	d.onStatus(said("ROOTCA", "context-1", "context-1"))
	d.onStatus(said("default", "certificate-2", "certificate-2")) // a certificate carries no CRL
	d.onStatus(said("ROOTCA", "context-2", "context-1"))
	if n := number("ROOTCA"); n != 1 {
		t.Errorf("CRL %d counts as acknowledged, and 1 was", n)
	}
	d.onStatus(said("ALL", "all-2", "all-2"))
	if n := number("ROOTCA"); n != 1 {
		t.Errorf("another context's acknowledgement made it CRL %d", n)
	}
	d.onStatus(said("ROOTCA", "context-2", "context-2"))
	if n, c := number("ROOTCA"), number("default"); n != 2 || c != 0 {
		t.Errorf("CRL %d by the context, %d by the certificate", n, c)
	}
}

func TestNamesThatAreNotServedLeaveNoLine(t *testing.T) {
	d := doorWith(t, &envoyConn{crl: map[string]uint64{}})
	for n := range 1000 {
		d.onStatus(said(fmt.Sprint("nothing-", n), "", ""))
	}
	if n := len(d.states()); n != 0 {
		t.Errorf("%d lines of names that were asked for in vain", n)
	}
	d.onStatus(said("default", "1", "1"))
	d.onStatus(said("default", "", "1")) // taken away, not answered yet
	if n := len(d.states()); n != 1 {
		t.Errorf("%d lines while a removal is on its way, want 1", n)
	}
	d.onStatus(said("default", "", ""))
	if n := len(d.states()); n != 0 {
		t.Errorf("%d lines of what is gone", n)
	}
}

func TestVersionsInUseAreNotForgotten(t *testing.T) {
	c := &envoyConn{crl: map[string]uint64{"old": 1}, statuses: map[string]distribute.Status{"ROOTCA": {Sent: "sent", Acked: "old"}}}
	for n := range 1000 { // an Envoy that answers nothing, through many CRLs
		c.crl[fmt.Sprint("v", n)] = uint64(n + 2)
		c.forgetOldLocked()
	}
	if len(c.crl) > maxVersions+2 {
		t.Errorf("%d versions are remembered", len(c.crl))
	}
	if c.crl["old"] != 1 || c.crl["v999"] != 1001 {
		t.Error("what it acknowledged, or the newest, is forgotten")
	}
}
