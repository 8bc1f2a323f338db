package envoy

import (
	"bytes"
	"context"
	"log/slog"
	"strings"
	"sync"
)

// logFormat marks each of Envoy's log records: level, logger, text; escaped,
// so that a record is one line.
const logFormat = "@%l %n %v"

// maxLine bounds a line of Envoy's output.
const maxLine = 8 << 10

// logLines passes Envoy's output on, line by line, at Envoy's own level.
type logLines struct {
	logger *slog.Logger
	ctx    context.Context

	mu   sync.Mutex // guards part, last; stdout and stderr both write
	part []byte
	last string
}

// level is what Envoy is asked for: no more than the logger takes.
func (l *logLines) level() string {
	switch {
	case l.logger.Enabled(l.ctx, slog.LevelDebug):
		return "info"
	case l.logger.Enabled(l.ctx, slog.LevelWarn):
		return "warning"
	}
	return "error"
}

// lastError is the last record of level error or above, or unmarked output.
func (l *logLines) lastError() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.part) > 0 {
		l.line(l.part)
		l.part = nil
	}
	return l.last
}

// Write takes output as it comes; it never fails.
func (l *logLines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	n := len(p)
	for len(p) > 0 {
		nl := bytes.IndexByte(p, '\n')
		if nl < 0 {
			l.part = append(l.part, p[:min(len(p), maxLine-min(len(l.part), maxLine))]...)
			break
		}
		l.part = append(l.part, p[:min(nl, maxLine-min(len(l.part), maxLine))]...)
		l.line(l.part)
		l.part = l.part[:0]
		p = p[nl+1:]
	}
	return n, nil
}

func (l *logLines) line(b []byte) {
	text := strings.TrimRight(string(b), "\r ")
	if text == "" {
		return
	}
	level, logger := slog.LevelInfo, ""
	if rest, ok := strings.CutPrefix(text, "@"); ok {
		word, rest, _ := strings.Cut(rest, " ")
		logger, text, _ = strings.Cut(rest, " ")
		switch word {
		case "trace", "debug":
			level = slog.LevelDebug
		case "info":
			level = slog.LevelDebug // its start alone writes eighty lines
		case "warning":
			level = slog.LevelWarn
		case "error", "critical":
			level = slog.LevelError
		}
	} else {
		level = slog.LevelWarn // a crash's stack trace, an assertion
	}
	if level >= slog.LevelError || logger == "" {
		l.last = clip(text)
	}
	l.logger.Log(l.ctx, level, "envoy: "+text, "logger", logger)
}
