package policy

import (
	"context"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// decisionLog writes decisions, bounded by a rate. A record holds who, what
// and why: no header, no path, no masked parameter, no query string.
type decisionLog struct {
	log     *slog.Logger
	every   uint64
	rate    float64
	allowed atomic.Uint64

	mu      sync.Mutex
	tokens  float64
	last    time.Time
	skipped uint64 // since the last record
}

func newDecisionLog(c Config) *decisionLog {
	return &decisionLog{log: c.Logger, every: uint64(max(c.LogAllowedEvery, 0)), rate: float64(c.LogPerSecond), tokens: float64(c.LogPerSecond), last: time.Now()}
}

func (l *decisionLog) add(ctx context.Context, r Record) {
	level := slog.LevelWarn
	if r.Allowed {
		level = slog.LevelInfo
		if l.every == 0 || l.allowed.Add(1)%l.every != 0 {
			return
		}
	}
	if l.rate < 0 || !l.log.Enabled(ctx, level) {
		return
	}
	skipped, ok := l.take()
	if !ok {
		return
	}
	versions := make([]string, len(r.Policies))
	for i, p := range r.Policies {
		versions[i] = p.Name + "@" + p.Version
	}
	attrs := []slog.Attr{
		slog.String("decision_id", r.ID.String()), slog.Bool("allowed", r.Allowed), slog.String("cause", string(r.Cause)),
		slog.String("spiffe_id", r.Identity.String()), slog.String("operation", r.Operation),
		slog.String("resource_type", r.Type), slog.String("resource_name", r.Name),
		slog.String("method", r.Method), slog.String("route", r.Route), slog.String("remote", r.Remote),
		slog.String("policies", strings.Join(versions, ",")), slog.Duration("duration", r.Duration),
	}
	if r.Detail != "" {
		attrs = append(attrs, slog.String("detail", r.Detail))
	}
	if r.Policy.Name != "" {
		attrs = append(attrs, slog.String("policy", r.Policy.Name))
	}
	if skipped > 0 {
		attrs = append(attrs, slog.Uint64("skipped", skipped))
	}
	l.log.LogAttrs(ctx, level, "policy decision", attrs...)
}

// take is a token bucket of one second's worth.
func (l *decisionLog) take() (skipped uint64, ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := time.Now()
	l.tokens = min(l.rate, l.tokens+now.Sub(l.last).Seconds()*l.rate)
	l.last = now
	if l.tokens < 1 {
		l.skipped++
		return 0, false
	}
	l.tokens--
	skipped, l.skipped = l.skipped, 0
	return skipped, true
}
