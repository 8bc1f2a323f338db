package promhandshake_test

import (
	"context"
	"crypto/tls"
	"fmt"
	"log"
	"net"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/legation-io/legation/sdk/handshake"
	"github.com/legation-io/legation/sdk/handshake/promhandshake"
)

// A client that calls a port which does not speak TLS, and what is counted.
func Example() {
	registry := prometheus.NewRegistry()
	hook, err := promhandshake.Hook(registry)
	if err != nil {
		log.Fatal(err)
	}

	ours, theirs := net.Pipe()
	go func() { theirs.Read(make([]byte, 4096)); theirs.Write([]byte("HTTP/1.1 400 Bad Request\r\n\r\n")) }()
	attempt := handshake.Begin(handshake.Client, ours, []handshake.Hook{hook})
	conn := tls.Client(ours, attempt.Config(context.Background(), &tls.Config{ServerName: "model.internal"}, nil))
	err = attempt.Run(context.Background(), conn)
	fmt.Println(err)

	count, err := testutil.GatherAndCount(registry, "legation_tls_handshake_errors_total")
	fmt.Println(count, err)
	// Output:
	// TLS handshake to pipe for "model.internal" failed (not_tls): the peer does not speak TLS, it looks like an HTTP answer without TLS; see https://github.com/legation-io/legation/blob/main/docs/handshake-failures.md#not_tls
	// 1 <nil>
}

func TestTheMetrics(t *testing.T) {
	registry := prometheus.NewPedanticRegistry()
	first, err := promhandshake.Hook(registry)
	if err != nil {
		t.Fatal(err)
	}
	second, err := promhandshake.Hook(registry)
	if err != nil {
		t.Fatalf("twice with one registerer: %v", err)
	}
	ctx := context.Background()
	first(ctx, &handshake.Event{Side: handshake.Server, Err: &handshake.Error{Cause: handshake.Expired, Alert: 45}})
	second(ctx, &handshake.Event{Side: handshake.Server, Err: &handshake.Error{Cause: handshake.Expired, Alert: 45}})
	first(ctx, &handshake.Event{Side: handshake.Client, Err: &handshake.Error{Cause: "made up by a stranger"}})
	first(ctx, &handshake.Event{Side: handshake.Client, Late: true, Err: &handshake.Error{Cause: handshake.Revoked, Alert: 44}})
	first(ctx, &handshake.Event{Side: handshake.Client})
	want := `
# HELP legation_tls_handshake_errors_total TLS handshakes that failed, by cause.
# TYPE legation_tls_handshake_errors_total counter
legation_tls_handshake_errors_total{cause="expired",error_type="tls_handshake_failed",refused_by="peer",side="server"} 2
legation_tls_handshake_errors_total{cause="other",error_type="tls_handshake_failed",refused_by="own",side="client"} 1
legation_tls_handshake_errors_total{cause="revoked",error_type="tls_handshake_failed",refused_by="peer",side="client"} 1
`
	if err := testutil.GatherAndCompare(registry, strings.NewReader(want), "legation_tls_handshake_errors_total"); err != nil {
		t.Error(err)
	}
	if _, err := promhandshake.Hook(nil); err != nil {
		t.Errorf("without a registerer: %v", err)
	}
	taken := prometheus.NewRegistry()
	taken.MustRegister(prometheus.NewCounter(prometheus.CounterOpts{Name: "legation_tls_handshake_errors_total", Help: "another"}))
	if _, err := promhandshake.Hook(taken); err == nil {
		t.Error("another metric by the name is not reported")
	}
}
