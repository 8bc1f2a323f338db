package ca

import (
	"errors"
	"fmt"
	"time"

	"github.com/legation-io/legation/internal/fault"
)

// minBackdate is how far validity reaches back at least, for peers whose
// clock is behind.
const minBackdate = 5 * time.Minute

// Lifetimes of what an authority signs. Zero fields are the defaults.
type Lifetimes struct {
	Root        time.Duration // 10 years; read when the authority is made
	Issuing     time.Duration // 1 year; read when the authority is made
	X509Default time.Duration // 24 h, when an entry asks for nothing
	X509Max     time.Duration // 72 h
	JWTDefault  time.Duration // 5 min
	JWTMax      time.Duration // 1 h
	Backdate    time.Duration // 5 min, and not less
	// CRLGrace is how long a serial stays in the CRL after its certificate
	// expired; 1 h.
	CRLGrace time.Duration
}

const year = 365 * 24 * time.Hour

func (l Lifetimes) withDefaults() (Lifetimes, error) {
	for _, f := range []struct {
		field *time.Duration
		def   time.Duration
	}{
		{&l.Root, 10 * year}, {&l.Issuing, year}, {&l.X509Default, 24 * time.Hour}, {&l.X509Max, 72 * time.Hour},
		{&l.JWTDefault, 5 * time.Minute}, {&l.JWTMax, time.Hour}, {&l.Backdate, minBackdate}, {&l.CRLGrace, time.Hour},
	} {
		if *f.field == 0 {
			*f.field = f.def
		}
	}
	var errs []error
	check := func(ok bool, format string, args ...any) {
		if !ok {
			errs = append(errs, fmt.Errorf(format, args...))
		}
	}
	check(l.Issuing > 0 && l.Issuing <= l.Root, "the issuing CA's lifetime %s must be above 0 and at most the root's %s", l.Issuing, l.Root)
	check(l.X509Default > 0 && l.X509Default <= l.X509Max, "the default lifetime %s of X.509-SVIDs must be above 0 and at most their maximum %s", l.X509Default, l.X509Max)
	check(l.JWTDefault > 0 && l.JWTDefault <= l.JWTMax, "the default lifetime %s of JWT-SVIDs must be above 0 and at most their maximum %s", l.JWTDefault, l.JWTMax)
	check(l.Backdate >= minBackdate && l.Backdate <= caBackdate, "certificates are back-dated by %s to %s, not by %s", minBackdate, caBackdate, l.Backdate)
	check(l.CRLGrace > 0, "the grace of the CRL must be above 0, not %s", l.CRLGrace)
	if err := errors.Join(errs...); err != nil {
		return l, fault.New(fault.Invalid, "lifetimes: %w", err)
	}
	return l, nil
}

// x509Validity decides the validity of a leaf and says why.
func (a *Authority) x509Validity(now time.Time, asked time.Duration) (notBefore, notAfter time.Time, reason string, err error) {
	ttl, reason, err := lifetime(asked, a.life.X509Default, a.life.X509Max)
	if err != nil {
		return time.Time{}, time.Time{}, "", err
	}
	now = now.UTC().Truncate(time.Second)
	notBefore, notAfter = now.Add(-a.life.Backdate), now.Add(ttl)
	if notBefore.Before(a.issuing.NotBefore) {
		notBefore = a.issuing.NotBefore
	}
	if notAfter.After(a.issuing.NotAfter) {
		notAfter = a.issuing.NotAfter
		reason += "; cut to the end of the issuing CA"
	}
	if !notAfter.After(now) {
		return time.Time{}, time.Time{}, "", fault.New(fault.Unavailable, "the issuing CA %s ended at %s: rotate it", a.issuing.Subject.CommonName, a.issuing.NotAfter.Format(time.RFC3339))
	}
	return notBefore, notAfter, reason, nil
}

// lifetime picks the entry's wish, else the default, and caps it.
func lifetime(asked, def, most time.Duration) (time.Duration, string, error) {
	switch {
	case asked < 0:
		return 0, "", fault.New(fault.Invalid, "the entry asks for a lifetime of %s; write a positive one, or none for the default of %s", asked, def)
	case asked == 0:
		return def, fmt.Sprintf("default of the trust domain, %s", def), nil
	case asked < time.Second:
		return 0, "", fault.New(fault.Invalid, "the entry asks for a lifetime of %s; certificates count whole seconds", asked)
	case asked > most:
		return most, fmt.Sprintf("entry asks %s; capped at the trust domain's maximum, %s", asked, most), nil
	}
	return asked, fmt.Sprintf("entry asks %s", asked), nil
}
