// Package otelhandshake makes an OpenTelemetry span of each failed TLS
// handshake. It is a hook of sdk/handshake in a package of its own, and needs
// OpenTelemetry's trace API only: which SDK exports the spans is the program's
// choice.
//
// The span "TLS handshake" starts and ends when the handshake did, is a child of
// the span in the handshake's context, has the kind of its side, and the
// attributes of the semantic conventions where there are some (network.*, tls.*,
// error.type), and else legation.tls.*. What a stranger wrote is printable and
// of bounded length; there is no secret in it.
package otelhandshake

import (
	"context"
	"crypto/tls"
	"net"
	"strings"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/trace"
	"go.opentelemetry.io/otel/trace/noop"

	"github.com/legation-io/legation/sdk/handshake"
)

// Config is what becomes a span.
type Config struct {
	// TracerProvider makes the spans, e.g. otel.GetTracerProvider(); nil makes
	// none.
	TracerProvider trace.TracerProvider
	// Successes makes a span of handshakes that succeed, too.
	Successes bool
}

// Hook returns a hook that makes spans.
func Hook(c Config) handshake.Hook {
	if c.TracerProvider == nil {
		c.TracerProvider = noop.NewTracerProvider()
	}
	tracer := c.TracerProvider.Tracer("github.com/legation-io/legation/sdk/handshake/otelhandshake")
	return func(ctx context.Context, event *handshake.Event) {
		if event.Err == nil && !c.Successes {
			return
		}
		kind := trace.SpanKindServer
		if event.Side == handshake.Client {
			kind = trace.SpanKindClient
		}
		_, span := tracer.Start(ctx, "TLS handshake", trace.WithSpanKind(kind), trace.WithTimestamp(event.Start))
		if span.IsRecording() {
			span.SetAttributes(attributes(event)...)
			if e := event.Err; e != nil {
				span.SetStatus(codes.Error, e.Error())
			}
		}
		span.End(trace.WithTimestamp(event.Start.Add(event.Duration)))
	}
}

func attributes(event *handshake.Event) []attribute.KeyValue {
	attrs := []attribute.KeyValue{attribute.String("legation.tls.side", string(event.Side))}
	if event.Remote != nil {
		attrs = append(attrs, address("network.peer", event.Remote)...)
	}
	if event.Local != nil {
		attrs = append(attrs, address("network.local", event.Local)...)
	}
	var version, suite uint16
	if e := event.Err; e != nil {
		version, suite = e.Version, e.CipherSuite
		attrs = append(attrs, attribute.String("error.type", handshake.ErrorType))
		for _, a := range e.LogValue().Group() {
			switch a.Key {
			case "error_type", "remote", "local", "side", "version", "cipher_suite":
			case "sni":
				attrs = append(attrs, attribute.String("tls.client.server_name", a.Value.String()))
			default:
				attrs = append(attrs, attribute.String("legation.tls."+a.Key, a.Value.String()))
			}
		}
	} else if cs := event.State; cs != nil {
		version, suite = cs.Version, cs.CipherSuite
		attrs = append(attrs, attribute.Bool("tls.established", true), attribute.Bool("tls.resumed", cs.DidResume))
	}
	if version != 0 {
		attrs = append(attrs, attribute.String("tls.protocol.name", "tls"),
			attribute.String("tls.protocol.version", strings.TrimPrefix(tls.VersionName(version), "TLS ")))
	}
	if suite != 0 {
		attrs = append(attrs, attribute.String("tls.cipher", tls.CipherSuiteName(suite)))
	}
	return attrs
}

func address(prefix string, a net.Addr) []attribute.KeyValue {
	if tcp, ok := a.(*net.TCPAddr); ok {
		return []attribute.KeyValue{attribute.String(prefix+".address", tcp.IP.String()), attribute.Int(prefix+".port", tcp.Port)}
	}
	return []attribute.KeyValue{attribute.String(prefix+".address", a.String())}
}
