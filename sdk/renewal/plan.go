package renewal

import (
	"context"
	"crypto/sha256"
	"crypto/x509"
	"time"
)

// failed reports whether an issuance that the spec as it is gave rise to, or
// somebody's hand, has failed and nothing was issued since.
func (s *Scheduler) failed(c *Certificate) bool {
	i := c.Status.Condition(Issuing)
	return c.Status.LastFailureTime != nil && i != nil && i.Reason == ReasonFailed && i.ObservedGeneration == c.Metadata.Generation
}

// wait is until when an issuance that is needed has to wait: for the backoff
// after a failure, and for MinInterval after a success.
func (s *Scheduler) wait(ctx context.Context, it *item, c *Certificate, secret *Secret, p pair, now time.Time) (time.Time, error) {
	var until time.Time
	last := it.memo.issued
	if secret != nil {
		if at := annotatedTime(secret, annotationIssued); at.After(last) && !at.After(now) {
			last = at
		}
	}
	if p.reason != ReasonRequestChanged && !last.IsZero() && !last.After(now) {
		until = last.Add(s.cfg.MinInterval)
	}
	failed := c.Status.LastFailureTime
	if failed == nil {
		return until, nil
	}
	if i := c.Status.Condition(Issuing); i != nil && i.ObservedGeneration != c.Metadata.Generation {
		return until, nil // the spec changed since it failed
	}
	if failed.After(now.Add(time.Second)) { // the clock went back
		failed = NewTime(now)
		c.Status.LastFailureTime = failed
	}
	attempts, left := 1, time.Duration(0)
	if c.Status.FailedIssuanceAttempts != nil {
		attempts = *c.Status.FailedIssuanceAttempts
	}
	if p.leaf != nil {
		left = p.leaf.NotAfter.Sub(failed.Time)
	}
	next, err := s.secret(ctx, Key{it.key.Namespace, it.key.Name + NextPrivateKeySuffix})
	if err != nil {
		return until, err
	}
	permanent := next != nil && next.Annotations[annotationPermanent] == "true"
	until = latest(until, failed.Add(s.cfg.Backoff.delay(attempts, left, permanent)))
	if next != nil {
		if at := annotatedTime(next, annotationRetry); at.Sub(failed.Time) <= maxRetryAfter {
			until = latest(until, at)
		}
	}
	return until, nil
}

// maxRetryAfter bounds what an issuer may demand.
const maxRetryAfter = 7 * 24 * time.Hour

// plan returns when a certificate is renewed: what its status says while that
// fits the certificate and the spec, else a new choice.
func (s *Scheduler) plan(it *item, c *Certificate, secret *Secret, leaf *x509.Certificate, now time.Time) time.Time {
	issued := annotatedTime(secret, annotationIssued)
	if issued.After(now) {
		issued = time.Time{}
	}
	due, ok := RenewalTime(&c.Spec, leaf.NotBefore, leaf.NotAfter, issued)
	if !ok {
		s.planner.forget(it.key)
		return time.Time{}
	}
	start := latest(leaf.NotBefore, issued)
	from := due.Add(-time.Duration(float64(due.Sub(start)) * s.cfg.Jitter))
	if !issued.IsZero() {
		from = latest(from, issued.Add(s.cfg.MinInterval))
		due = latest(due, from)
	}
	which := sha256.Sum256(leaf.Raw)
	if it.memo.plannedFor == which {
		s.planner.note(it.key, it.memo.planned)
		return it.memo.planned
	}
	at := c.Status.RenewalTime.At()
	if at.Before(from.Add(-time.Second)) || at.After(due.Add(time.Second)) {
		at = s.planner.pick(it.key, from, due).Truncate(time.Second)
	}
	if now.Sub(at) > 2*recheck && !s.once.Load() && !c.Status.Is(Issuing) && c.Status.LastFailureTime == nil {
		// The clock jumped, the machine slept or the program did not run.
		at = s.planner.firstFit(it.key, now, now.Add(leaf.NotAfter.Sub(now)/4), s.cfg.StormRate)
		it.memo.planned, it.memo.plannedFor = at, which
	} else if !now.Before(at) {
		it.memo.planned, it.memo.plannedFor = at, which
	}
	s.planner.note(it.key, at)
	return at
}
