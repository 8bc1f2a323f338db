package agent

import (
	"log/slog"
	"slices"
	"strings"
	"testing"
	"time"

	localv1 "github.com/legation-io/legation/api/local/v1"
	"github.com/legation-io/legation/internal/agent/session"
)

func TestAnUnconfirmedCRLIsAProblem(t *testing.T) {
	d := doorWith(t, &envoyConn{crl: map[string]uint64{}})
	a := &agent{cfg: DefaultConfig(), link: d.link, envoys: d, sessions: session.New(session.Params{RunDir: t.TempDir(), Log: slog.New(slog.DiscardHandler)})}
	ago := func(d time.Duration) int64 { return time.Now().Add(-d).Unix() }
	for _, tt := range []struct {
		name   string
		status *localv1.StatusResponse
		says   string // "" is nothing of CRLs
	}{
		{"confirmed just now", &localv1.StatusResponse{Connected: true, SinceUnix: ago(time.Hour), HeartbeatUnix: ago(10 * time.Second)}, ""},
		{"confirmed too long ago", &localv1.StatusResponse{Connected: true, SinceUnix: ago(time.Hour), HeartbeatUnix: ago(6 * time.Minute)}, "was last confirmed"},
		{"confirmed too long ago, and no control plane", &localv1.StatusResponse{SinceUnix: ago(time.Hour), HeartbeatUnix: ago(6 * time.Minute)}, "it goes away once the control plane answers again"},
		{"never confirmed, linked for long", &localv1.StatusResponse{Connected: true, SinceUnix: ago(time.Hour)}, "was never confirmed"},
		{"never confirmed, linked just now", &localv1.StatusResponse{Connected: true, SinceUnix: ago(time.Second)}, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			list := (&agentAdmin{agent: a}).problems(tt.status)
			found := slices.ContainsFunc(list, func(p string) bool {
				return strings.Contains(p, "confirmed") && strings.Contains(p, tt.says)
			})
			if found != (tt.says != "") {
				t.Errorf("problems: %q", list)
			}
		})
	}
}
