package chaincheck

import (
	"context"
	"crypto"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// OCSP asks responders and remembers their answers until their nextUpdate,
// and what was revoked until it is pushed out by other revocations: many
// verifiers may share one. An answer is renewed in the background when a
// quarter of its time is left, so that no handshake waits for it. A failure
// is not tried again at once.
type OCSP struct {
	config  OCSPConfig
	context context.Context
	cancel  context.CancelFunc
	flights sync.WaitGroup

	// generation moves when something remembered stops being good.
	generation atomic.Uint64
	stats      ocspCounters

	mu      sync.RWMutex // guards what follows; never held across I/O
	closed  bool
	flying  int
	entries map[string]*ocspEntry
}

type ocspEntry struct {
	used     atomic.Bool // since it was last passed over for eviction
	answer   *ocspAnswer // nil before the first
	flight   *ocspFlight // nil while nobody is asked
	why      string      // what failed last, "" nothing
	failures int         // in a row
	retryAt  time.Time
}

type ocspFlight struct{ done chan struct{} }

const (
	ocspBackoff    = 10 * time.Second // doubled with each failure in a row
	ocspBackoffMax = 10 * time.Minute
	maxOCSPURLs    = 2 // of one certificate
	maxURL         = 2048
)

// NewOCSP returns an OCSP, which asks nobody yet. Close it.
func NewOCSP(c OCSPConfig) *OCSP {
	defaults := func(d *time.Duration, v time.Duration) {
		if *d <= 0 {
			*d = v
		}
	}
	defaults(&c.Timeout, 2*time.Second)
	defaults(&c.FetchTimeout, 5*time.Second)
	if c.MaxEntries <= 0 {
		c.MaxEntries = 4096
	}
	if c.MaxFetches <= 0 {
		c.MaxFetches = 16
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.Logger == nil {
		c.Logger = slog.Default()
	}
	o := &OCSP{config: c, entries: map[string]*ocspEntry{}}
	o.context, o.cancel = context.WithCancel(context.Background())
	return o
}

// Close ends what is under way and waits for it. What is remembered is still
// used afterwards.
func (o *OCSP) Close() error {
	o.mu.Lock()
	o.closed = true
	o.mu.Unlock()
	o.cancel()
	o.flights.Wait()
	return nil
}

// entryKey tells certificates apart by issuer name, issuer key and serial.
func entryKey(buffer []byte, child, issuer *x509.Certificate) []byte {
	for _, part := range [...][]byte{issuer.RawSubject, issuer.RawSubjectPublicKeyInfo} {
		buffer = append(buffer, byte(len(part)>>16), byte(len(part)>>8), byte(len(part)))
		buffer = append(buffer, part...)
	}
	var serial [maxSerialBytes]byte
	return append(buffer, child.SerialNumber.FillBytes(serial[:])...) // factsOf saw that it fits
}

// known returns what is remembered of child; nil for nothing. It never waits.
func (o *OCSP) known(child, issuer *x509.Certificate, now time.Time) *ocspAnswer {
	var buffer [1024]byte
	key := entryKey(buffer[:0], child, issuer)
	o.mu.RLock()
	e := o.entries[string(key)]
	if e == nil || e.answer == nil {
		o.mu.RUnlock()
		return nil
	}
	a := e.answer
	ageing := e.flight == nil && a.ageing(now) && !e.holdsOff(now)
	o.mu.RUnlock()
	if !e.used.Load() {
		e.used.Store(true)
	}
	o.stats.hits.Add(1)
	if ageing {
		o.ask(child, issuer, now)
	}
	return a
}

// ageing: three quarters of its time are over, and there is nothing final.
func (a *ocspAnswer) ageing(now time.Time) bool {
	return !a.final() && now.Sub(a.thisUpdate) > a.nextUpdate.Sub(a.thisUpdate)/4*3
}

// final: nobody gives the certificate back (RFC 5280 5.3.1).
func (a *ocspAnswer) final() bool { return a.status == StatusRevoked && a.reason != certificateHold }

// holdsOff: it failed not long ago. A clock that was set back does not keep it
// from being tried.
func (e *ocspEntry) holdsOff(now time.Time) bool {
	return now.Before(e.retryAt) && e.retryAt.Sub(now) <= ocspBackoffMax
}

// fetch waits for a current answer, at most until ctx ends. Without one it
// says why, and when it is worth asking again.
func (o *OCSP) fetch(ctx context.Context, child, issuer *x509.Certificate, now time.Time) (a *ocspAnswer, why string, retry time.Time) {
	e, flight, why := o.ask(child, issuer, now)
	if flight == nil {
		o.mu.RLock()
		defer o.mu.RUnlock()
		if e != nil {
			return e.answer, why, e.retryAt
		}
		return nil, why, now
	}
	select {
	case <-flight.done:
	case <-ctx.Done():
		return nil, "the responder did not answer in the time that a handshake waits", now
	}
	o.mu.RLock()
	defer o.mu.RUnlock()
	return e.answer, e.why, e.retryAt
}

// ask joins the exchange about child that is under way, or begins one. It
// does not wait; nil when nobody is asked, and why.
func (o *OCSP) ask(child, issuer *x509.Certificate, now time.Time) (*ocspEntry, *ocspFlight, string) {
	urls := responderURLs(child)
	if o.config.Fetcher == nil || len(urls) == 0 {
		return nil, nil, "it names no OCSP responder that is reached by http"
	}
	var buffer [1024]byte
	key := entryKey(buffer[:0], child, issuer)
	forgotten := 0
	defer func() {
		if forgotten > 0 {
			o.config.Logger.Warn("an OCSP revocation is forgotten: MaxEntries are remembered", "entries", forgotten)
		}
	}()
	o.mu.Lock()
	defer o.mu.Unlock()
	e := o.entries[string(key)]
	switch {
	case e != nil && e.flight != nil:
		return e, e.flight, ""
	case e != nil && e.holdsOff(now):
		return e, nil, e.why
	case o.closed:
		return e, nil, "no responder is asked any more: OCSP is closed"
	case o.flying >= o.config.MaxFetches:
		o.stats.busy.Add(1)
		return e, nil, fmt.Sprintf("%d responders are being asked already", o.flying)
	}
	if e == nil {
		if n := len(o.entries); n >= o.config.MaxEntries && o.evictLocked(now) {
			forgotten = n
		}
		e = &ocspEntry{}
		o.entries[string(key)] = e
	}
	flight := &ocspFlight{make(chan struct{})}
	e.flight = flight
	o.flying++
	o.flights.Add(1)
	go func() {
		defer o.flights.Done()
		o.fly(e, flight, child, issuer, urls)
	}()
	return e, flight, ""
}

// evictLocked forgets one of a few entries at random: one that is of no use
// any more, or was not used lately. What is revoked goes last; it reports when
// that is what it forgot.
func (o *OCSP) evictLocked(now time.Time) (revoked bool) {
	var victim string
	best, seen := -1, 0
	for key, e := range o.entries {
		if e.flight != nil {
			continue
		}
		worth := 0
		switch {
		case e.answer == nil:
		case e.answer.status == StatusRevoked:
			worth = 3
		case !now.After(e.answer.nextUpdate) && e.used.Swap(false):
			worth = 2
		case !now.After(e.answer.nextUpdate):
			worth = 1
		}
		if best < 0 || worth < best {
			victim, best = key, worth
		}
		if seen++; seen == 16 || best == 0 {
			break
		}
	}
	if best < 0 {
		return false // all are under way, and those are bounded too
	}
	delete(o.entries, victim)
	return best == 3
}

// responderURLs are those that are worth a try.
func responderURLs(cert *x509.Certificate) []string {
	var urls []string
	for _, u := range cert.OCSPServer {
		if len(u) <= maxURL && len(u) > 7 && strings.EqualFold(u[:7], "http://") && len(urls) < maxOCSPURLs {
			urls = append(urls, u)
		}
	}
	return urls
}

// fly asks, and remembers what it learned.
func (o *OCSP) fly(e *ocspEntry, flight *ocspFlight, child, issuer *x509.Certificate, urls []string) {
	ctx, cancel := context.WithTimeout(o.context, o.config.FetchTimeout)
	defer cancel()
	var best *ocspAnswer
	var errs []error
	for _, url := range urls {
		a, err := o.exchange(ctx, url, child, issuer)
		if err != nil {
			errs = append(errs, fmt.Errorf("%.256s: %w", url, err))
			continue
		}
		if best == nil || a.status == StatusRevoked || best.status == StatusUnknown {
			best = a
		}
		if best.status != StatusUnknown {
			break
		}
	}
	now := o.config.Now()
	o.mu.Lock()
	if best != nil {
		if err := e.learnLocked(best); err != nil {
			errs, best = append(errs, err), nil
		} else if best.status != StatusGood {
			o.generation.Add(1)
		}
	}
	if best == nil {
		o.stats.failed.Add(1) // before whoever waits is told
		e.why = "no OCSP answer: " + errors.Join(errs...).Error()
		e.retryAt = now.Add(min(ocspBackoff<<min(e.failures, 10), ocspBackoffMax))
		e.failures++
	} else {
		// Renewed at most so often, however short its time.
		e.why, e.failures, e.retryAt = "", 0, earlier(now.Add(ocspBackoff), best.nextUpdate)
	}
	why := e.why
	e.flight = nil
	o.flying--
	o.mu.Unlock()
	close(flight.done)
	switch {
	case best == nil:
		o.config.Logger.Warn("OCSP failed", "certificate", describe(child), "error", why)
	case best.status == StatusRevoked:
		o.config.Logger.Warn("OCSP says revoked", "certificate", describe(child), "by", best.signer, "at", best.revokedAt)
	}
}

// learnLocked keeps the newer answer; what is revoked for good stays so.
func (e *ocspEntry) learnLocked(a *ocspAnswer) error {
	old := e.answer
	switch {
	case old == nil, a.status == StatusRevoked && !old.final():
	case old.final():
		return nil
	case a.thisUpdate.Before(old.thisUpdate):
		return fmt.Errorf("the answer is from %s; one from %s is known already", stamp(a.thisUpdate), stamp(old.thisUpdate))
	}
	e.answer = a
	return nil
}

// exchange is one question and its answer, checked but for what depends on
// the trust of the moment.
func (o *OCSP) exchange(ctx context.Context, url string, child, issuer *x509.Certificate) (*ocspAnswer, error) {
	hash := crypto.SHA1
	if o.config.SHA256 {
		hash = crypto.SHA256
	}
	der, nonce, err := ocspRequest(hash, child, issuer, o.config.Nonce != NonceOff)
	if err != nil {
		return nil, err
	}
	o.stats.fetches.Add(1)
	raw, err := o.config.Fetcher.Fetch(ctx, OCSPRequest{URL: url, DER: der, Nonce: nonce != nil})
	if err != nil {
		return nil, err
	}
	response, err := parseOCSP(raw)
	if err != nil {
		return nil, err
	}
	if err := response.checkNonce(nonce, o.config.Nonce); err != nil {
		return nil, err
	}
	a, err := response.answerFor(child, issuer, &Work{})
	if err != nil {
		return nil, err
	}
	if why := a.undue(o.config.Now().Truncate(time.Second)); why != "" && a.status != StatusRevoked {
		return nil, errors.New(why)
	}
	return a, nil
}

// OCSPStats count since NewOCSP.
type OCSPStats struct {
	Hits     uint64 // verifications that an answer was remembered for
	Fetches  uint64 // questions sent
	Failures uint64 // exchanges that brought no answer that counts
	Busy     uint64 // exchanges not begun for MaxFetches
	Entries  int    // certificates remembered
}

type ocspCounters struct{ hits, fetches, failed, busy atomic.Uint64 }

// Stats returns the counts.
func (o *OCSP) Stats() OCSPStats {
	o.mu.RLock()
	defer o.mu.RUnlock()
	return OCSPStats{o.stats.hits.Load(), o.stats.fetches.Load(), o.stats.failed.Load(), o.stats.busy.Load(), len(o.entries)}
}
