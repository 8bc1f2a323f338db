package agent

import (
	"strings"
	"testing"
	"time"

	localv1 "github.com/legation-io/legation/api/local/v1"
)

func TestWhatEndsBecauseItIsNotRenewedIsAProblem(t *testing.T) {
	now := time.Unix(1_800_000_000, 0)
	at := func(d time.Duration) int64 { return now.Add(d).Unix() }
	held := func(renew, end time.Duration) *localv1.StatusResponse {
		return &localv1.StatusResponse{Node: "web-1", AgentSvidExpiresUnix: at(time.Hour),
			Identities: []*localv1.IdentityStatus{{SpiffeId: "spiffe://example.org/a", Instance: "uid/1", RenewAtUnix: at(renew), NotAfterUnix: at(end)}}}
	}
	for _, c := range []struct {
		name string
		r    *localv1.StatusResponse
		want string
	}{
		{"nothing is held yet", &localv1.StatusResponse{}, ""},
		{"not due yet", held(time.Hour, 2*time.Hour), ""},
		{"just due", held(-time.Minute, time.Hour), ""},
		{"due for long", held(-time.Hour, time.Hour), "spiffe://example.org/a (uid/1) was due for renewal 1h0m0s ago and ends in 1h0m0s"},
		{"the node's own has ended", &localv1.StatusResponse{Node: "web-1", AgentSvidExpiresUnix: at(-time.Minute)}, "attest it again: legation token create --node web-1"},
	} {
		t.Run(c.name, func(t *testing.T) {
			got := strings.Join(endings(c.r, now), "\n")
			if c.want == "" && got != "" || !strings.Contains(got, c.want) {
				t.Errorf("%q, want %q", got, c.want)
			}
		})
	}
}
