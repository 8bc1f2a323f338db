package renewal

import (
	"time"
)

// Within is how long before its end a certificate is due whatever its spec
// says, unless that is more than half of its life.
const Within = 72 * time.Hour

// ShortLived is the lifetime up to which two thirds of it decide alone.
const ShortLived = 72 * time.Hour

// RenewalTime returns when a certificate with these dates is to be renewed,
// and false when its spec says never. issued is when it was obtained, where
// that is known; else the zero time.
//
// It is renewBefore or renewBeforePercentage of the spec before the end, a
// third of the certificate's real lifetime without them (so at two thirds of
// its life), and not later than 72 hours before the end when it lives longer
// than that, though never before half of its life. A time that lies before
// issued, because the issuer gave a shorter life than was asked for or a
// certificate that had lived for a while, becomes two thirds of what was left
// then: however short that is, renewing comes to an end.
func RenewalTime(spec *CertificateSpec, notBefore, notAfter, issued time.Time) (time.Time, bool) {
	if spec.Renewal != nil && spec.Renewal.Policy == Disabled {
		return time.Time{}, false
	}
	life := notAfter.Sub(notBefore)
	before := life / 3
	switch b, p := spec.RenewBefore, spec.RenewBeforePercentage; {
	case b != nil && b.Duration > 0 && b.Duration < life:
		before = b.Duration
	case p != nil && *p > 0 && *p < 100:
		before = percent(life, *p)
	}
	if life > ShortLived {
		before = max(before, min(Within, life/2))
	}
	at := notAfter.Add(-before).Truncate(time.Second)
	if !issued.IsZero() && !at.After(issued) {
		at = issued.Add(max(0, notAfter.Sub(issued)) / 3 * 2).Truncate(time.Second)
	}
	return at, true
}

// Backoff is how long a failed issuance waits for the next one.
type Backoff struct {
	// Min after the first failure, doubled by each further one, up to Max.
	// Zero: 1 h and 32 h, as in cert-manager.
	Min, Max time.Duration
}

// leastRetry bounds how often a certificate near its end is tried.
const leastRetry = 5 * time.Minute

func (b Backoff) withDefaults() Backoff {
	if b.Min <= 0 {
		b.Min = time.Hour
	}
	if b.Max <= 0 {
		b.Max = 32 * time.Hour
	}
	b.Max = max(b.Max, b.Min)
	return b
}

// delay is how long to wait after the nth failure in a row, from 1, with left
// as the time until what is there ends: several tries still fit in. A failure
// that will not mend by itself waits for Max.
func (b Backoff) delay(n int, left time.Duration, permanent bool) time.Duration {
	if permanent {
		return b.Max
	}
	d := b.Max
	if shift := max(n, 1) - 1; shift < 32 && b.Min <= b.Max>>shift {
		d = b.Min << shift
	}
	if left > 0 {
		d = min(d, max(left/3, min(b.Min, leastRetry)))
	}
	return d
}
