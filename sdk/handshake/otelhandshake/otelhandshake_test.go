package otelhandshake_test

import (
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"testing"
	"time"

	"go.opentelemetry.io/otel/codes"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	"go.opentelemetry.io/otel/trace"

	"github.com/legation-io/legation/sdk/handshake"
	"github.com/legation-io/legation/sdk/handshake/otelhandshake"
)

// A client that calls a port which does not speak TLS, and the span of it.
func Example() {
	spans := tracetest.NewInMemoryExporter()
	hook := otelhandshake.Hook(otelhandshake.Config{TracerProvider: sdktrace.NewTracerProvider(sdktrace.WithSyncer(spans))})

	ours, theirs := net.Pipe()
	go func() { theirs.Read(make([]byte, 4096)); theirs.Write([]byte("HTTP/1.1 400 Bad Request\r\n\r\n")) }()
	attempt := handshake.Begin(handshake.Client, ours, []handshake.Hook{hook})
	conn := tls.Client(ours, attempt.Config(context.Background(), &tls.Config{ServerName: "model.internal"}, nil))
	_ = attempt.Run(context.Background(), conn)

	span := spans.GetSpans()[0]
	fmt.Println(span.Name, span.SpanKind, span.Status.Code)
	for _, a := range span.Attributes {
		if a.Key == "error.type" || a.Key == "legation.tls.cause" || a.Key == "tls.client.server_name" {
			fmt.Println(a.Key, a.Value.AsString())
		}
	}
	// Output:
	// TLS handshake client Error
	// error.type tls_handshake_failed
	// legation.tls.cause not_tls
	// tls.client.server_name model.internal
}

func TestSpans(t *testing.T) {
	exporter := tracetest.NewInMemoryExporter()
	provider := sdktrace.NewTracerProvider(sdktrace.WithSyncer(exporter))
	start := time.Now().Add(-time.Second)
	remote := &net.TCPAddr{IP: net.IPv4(10, 0, 0, 7), Port: 4711}
	failure := &handshake.Event{Side: handshake.Server, Remote: remote, Start: start, Duration: 5 * time.Millisecond,
		Err: &handshake.Error{Cause: handshake.Expired, Whose: handshake.Peer, Remote: remote, SNI: "a\nb", Version: tls.VersionTLS13, CipherSuite: tls.TLS_AES_256_GCM_SHA384}}
	success := &handshake.Event{Side: handshake.Client, Remote: remote, Start: start, State: &tls.ConnectionState{Version: tls.VersionTLS13}}

	parent, end := provider.Tracer("test").Start(context.Background(), "dial")
	otelhandshake.Hook(otelhandshake.Config{TracerProvider: provider})(parent, failure)
	otelhandshake.Hook(otelhandshake.Config{TracerProvider: provider})(parent, success)
	spans := exporter.GetSpans()
	if len(spans) != 1 {
		t.Fatalf("%d spans, want that of the failure", len(spans))
	}
	s := spans[0]
	got := map[string]string{}
	for _, a := range s.Attributes {
		got[string(a.Key)] = a.Value.String()
	}
	for key, want := range map[string]string{
		"error.type": "tls_handshake_failed", "legation.tls.cause": "expired", "legation.tls.whose": "peer", "legation.tls.side": "server",
		"network.peer.address": "10.0.0.7", "network.peer.port": "4711", "tls.client.server_name": `a\nb`,
		"tls.protocol.version": "1.3", "tls.cipher": "TLS_AES_256_GCM_SHA384",
	} {
		if got[key] != want {
			t.Errorf("%s is %q, want %q", key, got[key], want)
		}
	}
	if s.Status.Code != codes.Error || s.SpanKind != trace.SpanKindServer || s.EndTime.Sub(s.StartTime) != 5*time.Millisecond || s.Parent.SpanID() != trace.SpanContextFromContext(parent).SpanID() {
		t.Errorf("%+v", s)
	}
	end.End()

	exporter.Reset()
	otelhandshake.Hook(otelhandshake.Config{TracerProvider: provider, Successes: true})(parent, success)
	if len(exporter.GetSpans()) != 1 {
		t.Error("no span of the success that was asked for")
	}
	otelhandshake.Hook(otelhandshake.Config{})(parent, failure) // makes none, and does not panic
}
