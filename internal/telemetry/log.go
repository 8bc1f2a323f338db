// Package telemetry is how both programs log, count and say that they are
// well. No secret passes through it.
package telemetry

import (
	"io"
	"log/slog"

	"github.com/legation-io/legation/internal/configfile"
)

// LogConfig says what is logged and how.
type LogConfig struct {
	// Level is debug, info, warn or error.
	Level string `yaml:"level"`
	// Format is text or json.
	Format string `yaml:"format"`
}

// Validate adds the mistakes under key.
func (c LogConfig) Validate(key string, p *configfile.Problems) {
	if _, ok := levels[c.Level]; !ok {
		p.Add(key+".level", "%q; write debug, info, warn or error", c.Level)
	}
	if c.Format != "text" && c.Format != "json" {
		p.Add(key+".format", "%q; write text or json", c.Format)
	}
}

var levels = map[string]slog.Level{"debug": slog.LevelDebug, "info": slog.LevelInfo, "warn": slog.LevelWarn, "error": slog.LevelError}

// Logger is a slog.Logger whose level can be changed while it runs.
type Logger struct {
	*slog.Logger
	level *slog.LevelVar
}

// NewLogger writes to w as configured.
func NewLogger(w io.Writer, c LogConfig) *Logger {
	level := new(slog.LevelVar)
	level.Set(levels[c.Level])
	opts := &slog.HandlerOptions{Level: level}
	var h slog.Handler = slog.NewTextHandler(w, opts)
	if c.Format == "json" {
		h = slog.NewJSONHandler(w, opts)
	}
	return &Logger{Logger: slog.New(h), level: level}
}

// SetLevel changes the level at once.
func (l *Logger) SetLevel(name string) {
	if level, ok := levels[name]; ok {
		l.level.Set(level)
	}
}
