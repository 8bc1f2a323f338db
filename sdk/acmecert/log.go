package acmecert

import (
	"context"
	"log"
	"log/slog"
	"strings"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
)

// bridge lets certmagic, which logs by zap, log to slog. What a CA wrote may
// be in a field: it is shortened and freed of control characters.
type bridge struct {
	handler slog.Handler
	fields  []zapcore.Field
}

func bridged(l *slog.Logger) *zap.Logger { return zap.New(&bridge{handler: l.Handler()}) }

func level(l zapcore.Level) slog.Level {
	switch {
	case l <= zapcore.InfoLevel:
		// What certmagic tells of each step is for whoever looks for a fault.
		return slog.LevelDebug
	case l == zapcore.WarnLevel:
		return slog.LevelWarn
	default:
		return slog.LevelError
	}
}

// Enabled implements zapcore.Core.
func (b *bridge) Enabled(l zapcore.Level) bool {
	return b.handler.Enabled(context.Background(), level(l))
}

// With implements zapcore.Core.
func (b *bridge) With(fields []zapcore.Field) zapcore.Core {
	return &bridge{b.handler, append(b.fields[:len(b.fields):len(b.fields)], fields...)}
}

// Check implements zapcore.Core.
func (b *bridge) Check(e zapcore.Entry, checked *zapcore.CheckedEntry) *zapcore.CheckedEntry {
	if b.Enabled(e.Level) {
		return checked.AddCore(e, b)
	}
	return checked
}

// Write implements zapcore.Core.
func (b *bridge) Write(e zapcore.Entry, fields []zapcore.Field) error {
	record := slog.NewRecord(e.Time, level(e.Level), clean(e.Message), 0)
	encoder := zapcore.NewMapObjectEncoder()
	for _, f := range append(b.fields[:len(b.fields):len(b.fields)], fields...) {
		f.AddTo(encoder)
	}
	for k, v := range encoder.Fields {
		if s, ok := v.(string); ok {
			v = clean(s)
		}
		record.AddAttrs(slog.Any(k, v))
	}
	return b.handler.Handle(context.Background(), record)
}

// Sync implements zapcore.Core.
func (b *bridge) Sync() error { return nil }

const maxText = 1024

// clean makes text from outside fit for a log or an error.
func clean(s string) string {
	if len(s) > maxText {
		s = s[:maxText] + "…"
	}
	return strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return ' '
		}
		return r
	}, strings.ToValidUTF8(s, "?"))
}

// bounded is a handler for the ACME library's logger: what it tells as
// information is for whoever looks for a fault, and text is cleaned.
type bounded struct{ slog.Handler }

// Enabled implements slog.Handler.
func (b bounded) Enabled(ctx context.Context, l slog.Level) bool {
	return b.Handler.Enabled(ctx, demote(l))
}

// Handle implements slog.Handler.
func (b bounded) Handle(ctx context.Context, r slog.Record) error {
	out := slog.NewRecord(r.Time, demote(r.Level), clean(r.Message), 0)
	r.Attrs(func(a slog.Attr) bool {
		if v := a.Value.Resolve(); v.Kind() != slog.KindTime && v.Kind() != slog.KindDuration && v.Kind() != slog.KindInt64 {
			a.Value = slog.StringValue(clean(v.String()))
		}
		out.AddAttrs(a)
		return true
	})
	return b.Handler.Handle(ctx, out)
}

// WithAttrs implements slog.Handler.
func (b bounded) WithAttrs(attrs []slog.Attr) slog.Handler {
	return bounded{b.Handler.WithAttrs(attrs)}
}

// WithGroup implements slog.Handler.
func (b bounded) WithGroup(name string) slog.Handler { return bounded{b.Handler.WithGroup(name)} }

// demote: an order that failed is told once, by Run, with its domain.
func demote(l slog.Level) slog.Level {
	if l >= slog.LevelInfo {
		return slog.LevelDebug
	}
	return l
}

// quiet passes what net/http complains of about strangers on as detail.
func quiet(l *slog.Logger) *log.Logger { return slog.NewLogLogger(l.Handler(), slog.LevelDebug) }
