package admin

import (
	"strings"
	"testing"
	"time"

	nodev1 "github.com/legation-io/legation/api/node/v1"
	"github.com/legation-io/legation/internal/acks"
)

func TestACertificateThatIsNotWhatWasIssuedIsAProblem(t *testing.T) {
	served := func(serial, issued string) *nodev1.ServedCertificate {
		return &nodev1.ServedCertificate{Subscriber: "envoy/1", SpiffeId: "spiffe://example.org/a", Serial: serial, IssuedSerial: issued}
	}
	for _, c := range []struct {
		name string
		sub  acks.Subscriber
		want string
	}{
		{"nothing was looked at", acks.Subscriber{}, ""},
		{"what was issued is presented", acks.Subscriber{Served: served("ab", "ab")}, ""},
		{"an agent that does not say what it issued", acks.Subscriber{Served: served("ab", "")}, ""},
		{"another is presented", acks.Subscriber{Name: "envoy/1", Node: "web-1", Served: served("ab", "cd")},
			"envoy/1 on web-1 (spiffe://example.org/a) presents certificate ab although it acknowledged cd"},
		{"on a node that is away nobody knows", acks.Subscriber{Away: true, Served: served("ab", "cd")}, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			if got := presented(c.sub); c.want == "" && got != "" || !strings.HasPrefix(got, c.want) {
				t.Errorf("%q, want %q", got, c.want)
			}
		})
	}
}

func TestLongTimesAreToldInDays(t *testing.T) {
	for d, want := range map[time.Duration]string{47 * time.Hour: "47h0m0s", 49 * time.Hour: "2 days", 239 * time.Hour: "9 days"} {
		if got := days(d); got != want {
			t.Errorf("%s is told as %q, want %q", d, got, want)
		}
	}
}
