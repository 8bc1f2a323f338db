package agent

import (
	"fmt"
	"testing"

	"github.com/legation-io/legation/internal/agent/svid"
	"github.com/legation-io/legation/internal/distribute"
)

func TestAnEnvoyPresentsWhatItAcknowledgedAndWhatItDidNotAskFor(t *testing.T) {
	web, db := &svid.SVID{Serial: "web"}, &svid.SVID{Serial: "db"}
	certs := map[string]served{
		"default": {"w2", web}, "spiffe://example.org/web": {"w2b", web}, "spiffe://example.org/db": {"d2", db},
	}
	for name, row := range map[string]struct {
		acked map[string]string // of the names it asked for
		want  string
	}{
		"it asked for none":                         {nil, "web db "},
		"it has the new one":                        {map[string]string{"default": "w2"}, "web db "},
		"it still has the old one":                  {map[string]string{"default": "w1"}, "db "},
		"it acknowledged nothing yet":               {map[string]string{"default": ""}, "db "},
		"under one of two names it has the old one": {map[string]string{"default": "w2", "spiffe://example.org/web": "w1b"}, "db "},
		"only the other identity is behind":         {map[string]string{"spiffe://example.org/db": "d1"}, "web "},
	} {
		t.Run(name, func(t *testing.T) {
			c := &envoyConn{certs: certs, held: []*svid.SVID{web, db}, statuses: map[string]distribute.Status{}}
			for name, version := range row.acked {
				c.statuses[name] = distribute.Status{Name: name, Acked: version}
			}
			got := ""
			for _, v := range c.presentedLocked() {
				got += fmt.Sprint(v.Serial, " ")
			}
			if got != row.want {
				t.Errorf("presents %s, want %s", got, row.want)
			}
		})
	}
}
