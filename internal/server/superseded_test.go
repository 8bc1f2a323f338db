package server

import (
	"net/netip"
	"testing"
	"time"

	"github.com/legation-io/legation/internal/fault"
	"github.com/legation-io/legation/internal/ledger"
)

func TestOnlyWhatANewerCertificateOfTheSameInstanceReplacesIsSuperseded(t *testing.T) {
	now := time.Now()
	old := ledger.Record{
		Kind: ledger.KindX509, Profile: "workload", Serial: "1", SPIFFEID: "spiffe://example.org/web", Entry: "default/web", Node: "web-1", Instance: "session/1",
		IssuedAt: now, IPs: []netip.Addr{netip.MustParseAddr("192.0.2.1")},
	}
	newer := old
	newer.Serial, newer.IssuedAt, newer.IPs = "2", now.Add(time.Minute), []netip.Addr{netip.MustParseAddr("192.0.2.2")}
	for name, row := range map[string]struct {
		edit   func(old, newer *ledger.Record)
		denied bool
	}{
		"replaced by one with another address": {func(_, _ *ledger.Record) {}, false},
		"a certificate of another node":        {func(old, _ *ledger.Record) { old.Node = "db-1" }, true},
		"an agent's own certificate":           {func(old, _ *ledger.Record) { old.Profile = "agent" }, true},
		"a JWT-SVID":                           {func(old, _ *ledger.Record) { old.Kind = ledger.KindJWT }, true},
		"the newest itself":                    {func(old, _ *ledger.Record) { old.IssuedAt = now.Add(time.Hour) }, true},
		"the newer is of another instance":     {func(_, newer *ledger.Record) { newer.Instance = "session/2" }, true},
		"the newer is of another entry":        {func(_, newer *ledger.Record) { newer.Entry = "default/other" }, true},
		"the newer is another node's":          {func(_, newer *ledger.Record) { newer.Node = "db-1" }, true},
		"an ordinary renewal":                  {func(_, newer *ledger.Record) { newer.IPs = old.IPs }, true},
	} {
		t.Run(name, func(t *testing.T) {
			old, newer := old, newer
			row.edit(&old, &newer)
			err := supersedable(old, "web-1", []ledger.Record{old, newer})
			if got := fault.Is(err, fault.Denied); got != row.denied || err != nil && !row.denied {
				t.Errorf("%v", err)
			}
		})
	}
}
