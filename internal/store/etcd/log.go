package etcd

import (
	"context"
	"log/slog"

	"go.uber.org/zap/zapcore"
)

// known are warnings that say nothing to the person who runs this; they are
// written at level debug.
var known = map[string]bool{
	// The directory may belong to others too; makeDirs sees to what is ours.
	"check file permission": true,
	// A new server asks before its first batch is written, and again later.
	"Failed to detect schema version":  true,
	"failed to update storage version": true,
	"Failed to detect storage schema version. Please wait till wal snapshot before upgrading cluster.": true,
	"failed to update cluster version": true, // closed before it came to it
	// What etcd keeps of a log whose unfinished last write it cut off.
	"ignored file in WAL directory": true,
}

// slogCore writes etcd's warnings and errors to slog.
type slogCore struct {
	log    *slog.Logger
	fields []zapcore.Field
}

func (c *slogCore) Enabled(l zapcore.Level) bool { return l >= zapcore.WarnLevel }

func (c *slogCore) With(fields []zapcore.Field) zapcore.Core {
	return &slogCore{c.log, append(c.fields[:len(c.fields):len(c.fields)], fields...)}
}

func (c *slogCore) Check(e zapcore.Entry, ce *zapcore.CheckedEntry) *zapcore.CheckedEntry {
	if !c.Enabled(e.Level) {
		return ce
	}
	return ce.AddCore(e, c)
}

func (c *slogCore) Write(e zapcore.Entry, fields []zapcore.Field) error {
	level := slog.LevelWarn
	if known[e.Message] || e.LoggerName == "raft" && e.Level == zapcore.WarnLevel { // raft has no peers to warn about
		level = slog.LevelDebug
	} else if e.Level > zapcore.WarnLevel {
		level = slog.LevelError
	}
	c.log.LogAttrs(context.Background(), level, "etcd: "+e.Message, attrs(c.fields, fields)...)
	return nil
}

func (c *slogCore) Sync() error { return nil }

func attrs(lists ...[]zapcore.Field) []slog.Attr {
	enc := zapcore.NewMapObjectEncoder()
	var out []slog.Attr
	for _, fields := range lists {
		for _, f := range fields {
			f.AddTo(enc)
			if v, ok := enc.Fields[f.Key]; ok {
				out = append(out, slog.Any(f.Key, v))
			}
		}
	}
	return out
}
