package session

import (
	"context"
	"fmt"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	localv1 "github.com/legation-io/legation/api/local/v1"
	nodev1 "github.com/legation-io/legation/api/node/v1"
	"github.com/legation-io/legation/internal/agent/svid"
	"github.com/legation-io/legation/internal/clock"
	"github.com/legation-io/legation/internal/envoytest"
	"github.com/prometheus/client_golang/prometheus"
)

type reports struct {
	Link
	mu   sync.Mutex
	list []*nodev1.ServedCertificate
}

func (r *reports) Report(req *nodev1.ReportRequest) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.list = append(r.list, req.Served...)
}

func TestWhatAnEnvoyPresentsIsComparedWithWhatItWasGiven(t *testing.T) {
	dir := envoytest.Dir(t)
	var presented atomic.Value // serials
	admin := http.Server{ReadHeaderTimeout: time.Second, Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		var list []string
		for i, serial := range presented.Load().([]string) {
			list = append(list, fmt.Sprintf(`{"cert_chain":[{"serial_number":%q,"valid_from":"2030-01-01T00:00:00Z","expiration_time":"2030-01-0%dT00:00:00Z"}]}`, serial, i+2))
		}
		fmt.Fprintf(w, `{"certificates":[%s]}`, strings.Join(list, ","))
	})}
	l, err := net.Listen("unix", filepath.Join(dir, "admin.sock"))
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = admin.Serve(l)
	}()
	defer func() {
		admin.Close()
		<-done
	}()

	out := &reports{}
	reg := prometheus.NewRegistry()
	s := New(Params{Link: out, Clock: clock.System, Registerer: reg})
	serial := func(n int64) string { return big.NewInt(n).Text(16) }
	sn := &session{visible: true, server: s, id: "one", dir: dir, log: slog.New(slog.DiscardHandler), out: make(chan *localv1.SessionResponse, 8),
		entry: &nodev1.Entry{SpiffeId: "spiffe://example.org/a"}, envoyPID: 1, look: make(chan struct{}, 1), presents: &svid.SVID{Serial: serial(0xabc)}}
	if err := s.add(sn); err != nil {
		t.Fatal(err)
	}
	ctx := context.Background()
	for _, step := range []struct {
		name     string
		presents []string
		doubted  bool
		ok       bool
		problem  string
		reported string
	}{
		{"what was given is presented", []string{"0abc"}, false, true, "", "abc"},
		{"the old one beside it, seen once, may be draining", []string{"123", "0abc"}, false, false, "", ""},
		{"seen again it is a problem", []string{"123", "0abc"}, true, false, "presents certificate 123", "123"},
		{"and is told once", []string{"123", "0abc"}, true, false, "presents certificate 123", ""},
		{"it is over", []string{"0abc"}, true, true, "", "abc"},
		{"nothing uses it yet", nil, false, true, "", ""},
	} {
		t.Run(step.name, func(t *testing.T) {
			presented.Store(step.presents)
			out.list = nil
			if ok := sn.checkServed(ctx, step.doubted); ok != step.ok {
				t.Errorf("all well is %v", ok)
			}
			if text := strings.Join(s.Problems(), ""); step.problem == "" && text != "" || !strings.Contains(text, step.problem) {
				t.Errorf("the problem is %q", text)
			}
			got := ""
			for _, r := range out.list {
				got += r.Serial
				if r.IssuedSerial != "abc" || r.Subscriber != "envoy/one" {
					t.Errorf("reported %v", r)
				}
			}
			if got != step.reported {
				t.Errorf("reported %q, want %q", got, step.reported)
			}
		})
	}
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	found := false
	for _, f := range families {
		if f.GetName() == "legation_served_certificate_expiry_seconds" {
			found = f.Metric[0].Gauge.GetValue() > 1e6
		}
	}
	if !found {
		t.Error("no seconds to expiry as served")
	}
}
