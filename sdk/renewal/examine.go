package renewal

import (
	"context"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"fmt"
	"reflect"
	"time"
)

// What this package and cert-manager note on a Secret.
const (
	annotationPrefix      = "renewal.legation.io/"
	annotationHash        = annotationPrefix + "request-hash" // what was asked for
	annotationRequest     = annotationPrefix + "request-id"
	annotationRevision    = annotationPrefix + "revision"
	annotationIssued      = annotationPrefix + "issued-at"
	annotationMade        = annotationPrefix + "made-at"   // of the next key
	annotationRetry       = annotationPrefix + "retry-at"  // the issuer wants to be left alone until then
	annotationPermanent   = annotationPrefix + "permanent" // the last failure was
	annotationCertificate = "cert-manager.io/certificate-name"
	annotationIssuerName  = "cert-manager.io/issuer-name"
	annotationIssuerKind  = "cert-manager.io/issuer-kind"
	annotationIssuerGroup = "cert-manager.io/issuer-group"
)

// memo is what is remembered of a certificate between two looks.
type memo struct {
	planned    time.Time // when an overdue renewal was moved to, or has come
	plannedFor [32]byte  // digest of the certificate that it is about
	issued     time.Time // when this process last issued it
	served     [32]byte  // digest of what Updated was told
	claimed    Key
	tidied     bool   // nothing of an old issuance is left
	issuer     string // of its metrics
}

// verdict is what an examination found.
type verdict struct {
	it      *item
	gone    bool // there is no such certificate
	ours    bool // the Filter passes it
	due     bool
	next    time.Time // when to look again, if not due; zero: at the next change
	issuer  string
	urgency time.Time
	trouble error // why it is not Ready
	err     error // the Store did not answer
}

// pair is what a Secret holds.
type pair struct {
	leaf   *x509.Certificate
	reason string // why a new certificate is needed, or ""
	text   string
}

// examine decides what is to be done about one certificate, and writes its
// status.
func (s *Scheduler) examine(ctx context.Context, it *item) verdict {
	v := verdict{it: it}
	for range 10 {
		c, err := s.cfg.Store.Get(ctx, it.key)
		if errors.Is(err, ErrNotFound) {
			s.letGo(it)
			v.gone = true
			return v
		}
		if err != nil {
			v.err = fmt.Errorf("read certificate %s: %w", it.key, err)
			return v
		}
		if !s.filter.Load().match(c) || c.Metadata.DeletionTimestamp != nil {
			s.letGo(it)
			return v
		}
		before := c.Clone()
		v = verdict{it: it, ours: true, issuer: c.issuerKey()}
		if v.err = s.judge(ctx, it, c, &v); v.err != nil {
			return v
		}
		if !reflect.DeepEqual(before.Status, c.Status) {
			err := s.cfg.Store.UpdateStatus(ctx, c)
			if errors.Is(err, ErrConflict) || errors.Is(err, ErrNotFound) {
				continue
			}
			if err != nil {
				v.err = fmt.Errorf("write the status of %s: %w", it.key, err)
				return v
			}
		}
		if it.memo.issuer != v.issuer {
			s.metrics.forget(it.key, it.memo.issuer)
			it.memo.issuer = v.issuer
		}
		s.metrics.tell(it.key, v.issuer, &c.Status)
		if r := c.Status.Condition(Ready); r.Status != True {
			v.trouble = fmt.Errorf("certificate %s: %s: %s", it.key, r.Reason, r.Message)
			if i := c.Status.Condition(Issuing); i != nil && (i.Reason == ReasonFailed || i.Reason == ReasonNoIssuer) {
				v.trouble = fmt.Errorf("%w; %s", v.trouble, i.Message)
			}
		}
		return v
	}
	v.err = fmt.Errorf("write the status of %s: %w, ten times", it.key, ErrConflict)
	return v
}

func (c *Certificate) issuerKey() string {
	ref := c.Spec.IssuerRef
	if ref.Kind == "ClusterIssuer" {
		return ref.String()
	}
	return c.Key().Namespace + "/" + ref.String()
}

// letGo forgets what is no longer ours.
func (s *Scheduler) letGo(it *item) {
	s.planner.forget(it.key)
	s.metrics.forget(it.key, it.memo.issuer)
	s.release(it.memo.claimed, it.key)
	it.memo = memo{}
}

// judge sets c.Status and v.
func (s *Scheduler) judge(ctx context.Context, it *item, c *Certificate, v *verdict) error {
	now := s.cfg.Now()
	set := func(status ConditionStatus, reason, text string) {
		c.Status.SetCondition(now, c.Metadata.Generation, Ready, status, reason, text)
	}
	if err := c.Validate(); err != nil {
		set(False, ReasonInvalidSpec, err.Error())
		return nil
	}
	secretKey := Key{it.key.Namespace, c.Spec.SecretName}
	if it.memo.claimed != secretKey {
		s.release(it.memo.claimed, it.key)
		it.memo.claimed = Key{}
	}
	secret, err := s.secret(ctx, secretKey)
	if err != nil {
		return err
	}
	owner, err := s.owner(ctx, secretKey, it.key, secret)
	if err != nil {
		return err
	}
	if owner != it.key {
		set(False, ReasonIncorrectCertificate, fmt.Sprintf("secret %s is that of certificate %s; give this one another secretName", secretKey, owner))
		return nil
	}
	it.memo.claimed = secretKey
	if !it.memo.tidied {
		if err := s.tidy(ctx, c); err != nil {
			return err
		}
		it.memo.tidied = true
	}

	p := s.inspect(c, secret)
	plan := time.Time{}
	c.Status.NotBefore, c.Status.NotAfter = nil, nil
	if p.leaf != nil {
		v.urgency = p.leaf.NotAfter
		c.Status.NotBefore, c.Status.NotAfter = NewTime(p.leaf.NotBefore), NewTime(p.leaf.NotAfter)
		plan = s.plan(it, c, secret, p.leaf, now)
	}
	switch {
	case p.reason == "" && now.After(p.leaf.NotAfter):
		p.reason, p.text = ReasonExpired, "Certificate expired on "+p.leaf.NotAfter.UTC().Format(time.RFC3339)
	case p.reason == "" && !plan.IsZero() && !now.Before(plan):
		p.reason, p.text = ReasonRenewing, "Renewing certificate as renewal was scheduled at "+plan.UTC().Format(time.RFC3339)
	}
	c.Status.RenewalTime = nil
	if !plan.IsZero() {
		c.Status.RenewalTime = NewTime(plan)
	}
	switch {
	case p.reason == "" && now.Before(p.leaf.NotBefore):
		set(False, ReasonNotYetValid, fmt.Sprintf("Certificate is valid only from %s; set the clocks right", p.leaf.NotBefore.UTC().Format(time.RFC3339)))
	case p.reason == "" || p.reason == ReasonRenewing:
		set(True, ReasonReady, textReady)
	default:
		set(False, p.reason, p.text)
	}
	if p.leaf != nil && p.reason != ReasonInvalidKeyPair {
		s.tell(it, c, secret)
	}
	return s.decide(ctx, it, c, secret, p, plan, now, v)
}

// tidy removes the request of an issuance that was finished just before the
// power failed.
func (s *Scheduler) tidy(ctx context.Context, c *Certificate) error {
	next := Key{c.Key().Namespace, c.Key().Name + nextSuffix}
	if c.Status.Is(Issuing) || c.Status.LastFailureTime != nil {
		return nil
	}
	left, err := s.secret(ctx, next)
	if err != nil || left == nil || left.Annotations[annotationCertificate] != c.Metadata.Name {
		return err
	}
	if err := s.cfg.Store.DeleteSecret(ctx, next.Namespace, next.Name); err != nil {
		return fmt.Errorf("delete secret %s: %w", next, err)
	}
	return nil
}

// decide says whether it is due, or when to look again.
func (s *Scheduler) decide(ctx context.Context, it *item, c *Certificate, secret *Secret, p pair, plan, now time.Time, v *verdict) error {
	if p.leaf != nil && !p.leaf.NotAfter.Before(now) {
		v.next = earliest(plan, p.leaf.NotAfter.Add(time.Second))
		if now.Before(p.leaf.NotBefore) {
			v.next = earliest(v.next, p.leaf.NotBefore)
		}
	}
	issuing := c.Status.Condition(Issuing)
	if issuing != nil && issuing.Status == True {
		v.due = true // interrupted, or somebody asked
		if issuing.Reason == ReasonManuallyTriggered || p.leaf == nil {
			v.urgency = time.Time{}
		}
	} else if again := s.failed(c); p.reason == "" && !again || p.reason == ReasonExpired && plan.IsZero() {
		if issuing != nil && issuing.Reason == ReasonNoIssuer {
			c.Status.RemoveCondition(Issuing)
		}
		return nil
	} else {
		wait, err := s.wait(ctx, it, c, secret, p, now)
		if err != nil {
			return err
		}
		if wait.After(now) {
			v.next = earliest(v.next, wait)
			if p.reason == ReasonRenewing {
				v.next = earliest(wait, p.leaf.NotAfter.Add(time.Second))
			}
			return nil
		}
		v.due = true
	}
	if s.cfg.Issuers(it.key.Namespace, c.Spec.IssuerRef) == nil {
		v.due, v.next = false, now.Add(s.cfg.Sweep)
		if c.Status.Is(Issuing) {
			return nil
		}
		c.Status.SetCondition(now, c.Metadata.Generation, Issuing, Unknown, ReasonNoIssuer, fmt.Sprintf("there is no issuer %s (yet); looking again within %s", c.Spec.IssuerRef, s.cfg.Sweep))
	}
	return nil
}

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
	next, err := s.secret(ctx, Key{it.key.Namespace, it.key.Name + nextSuffix})
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

func (s *Scheduler) secret(ctx context.Context, k Key) (*Secret, error) {
	secret, err := s.cfg.Store.GetSecret(ctx, k.Namespace, k.Name)
	if errors.Is(err, ErrNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read secret %s: %w", k, err)
	}
	return secret, nil
}

// owner is the certificate that a Secret belongs to: the one that it was
// issued for, while that still wants it, else the one that came first.
func (s *Scheduler) owner(ctx context.Context, secretKey, k Key, secret *Secret) (Key, error) {
	if secret != nil {
		if name := secret.Annotations[annotationCertificate]; name != "" && name != k.Name {
			other, err := s.cfg.Store.Get(ctx, Key{k.Namespace, name})
			if err != nil && !errors.Is(err, ErrNotFound) {
				return Key{}, fmt.Errorf("read certificate %s/%s: %w", k.Namespace, name, err)
			}
			if err == nil && other.Spec.SecretName == secretKey.Name && other.Metadata.DeletionTimestamp == nil {
				return other.Key(), nil
			}
		}
	}
	owner, _ := s.claim(secretKey, k)
	return owner, nil
}

// inspect reads a Secret and says why it is not what the spec asks for.
func (s *Scheduler) inspect(c *Certificate, secret *Secret) pair {
	if secret == nil {
		return pair{reason: ReasonDoesNotExist, text: "Issuing certificate as Secret does not exist"}
	}
	if len(secret.Data[TLSKey]) == 0 || len(secret.Data[TLSCert]) == 0 {
		return pair{reason: ReasonMissingData, text: "Issuing certificate as Secret does not contain a private key and a certificate"}
	}
	chain, err := decodeChain(secret.Data[TLSCert])
	if err != nil {
		return pair{reason: ReasonInvalidCertificate, text: fmt.Sprintf("Issuing certificate as Secret contains an invalid certificate: %v", err)}
	}
	p := pair{leaf: chain[0]}
	key, err := decodeKey(secret.Data[TLSKey])
	if err != nil {
		p.reason, p.text = ReasonInvalidKeyPair, fmt.Sprintf("Issuing certificate as Secret contains an invalid private key: %v", err)
		return p
	}
	a := secret.Annotations
	asked, known := a[annotationHash]
	was := IssuerRef{a[annotationIssuerName], a[annotationIssuerKind], a[annotationIssuerGroup]}
	switch missing, misfit := c.Spec.missingName(p.leaf), keyFits(key, s.keyOf(c)); {
	case !samePublic(p.leaf.PublicKey, key.Public()):
		p.reason, p.text = ReasonInvalidKeyPair, "Issuing certificate as Secret contains a private key that does not match the certificate"
	case misfit != "":
		p.reason, p.text = ReasonSecretMismatch, "Existing private key is not up to date for spec: "+misfit
	case was.Name != "" && was.String() != c.Spec.IssuerRef.String():
		p.reason, p.text = ReasonIncorrectIssuer, fmt.Sprintf("Issuing certificate as Secret was previously issued by %s", was)
	case known && asked != c.Spec.requestHash():
		p.reason, p.text = ReasonRequestChanged, "Issuing certificate as the spec changed since the last one"
	case !known && missing != "":
		p.reason, p.text = ReasonSecretMismatch, "Issuing certificate as Existing issued Secret is not up to date for spec: it lacks "+missing
	}
	return p
}

// keyOf is the kind of key that a certificate asks for.
func (s *Scheduler) keyOf(c *Certificate) CertificatePrivateKey {
	k := s.cfg.PrivateKey
	if o := c.Spec.PrivateKey; o != nil {
		if o.Algorithm != "" {
			k.Algorithm, k.Size = o.Algorithm, o.Size
		}
		if o.Encoding != "" {
			k.Encoding = o.Encoding
		}
		if o.RotationPolicy != "" {
			k.RotationPolicy = o.RotationPolicy
		}
	}
	return k
}

// tell calls Updated when the Secret is another one.
func (s *Scheduler) tell(it *item, c *Certificate, secret *Secret) {
	if s.cfg.Updated == nil {
		return
	}
	h := sha256.New()
	for _, name := range []string{TLSKey, TLSCert, CACert} {
		fmt.Fprintf(h, "%d:", len(secret.Data[name]))
		h.Write(secret.Data[name])
	}
	if sum := [32]byte(h.Sum(nil)); sum != it.memo.served {
		it.memo.served = sum
		s.cfg.Updated(c.Clone(), secret)
	}
}

func annotatedTime(s *Secret, name string) time.Time {
	var t Time
	if s != nil && t.parse(s.Annotations[name]) == nil {
		return t.Time
	}
	return time.Time{}
}

func latest(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

// earliest of two moments, of which the zero time is none.
func earliest(a, b time.Time) time.Time {
	if a.IsZero() || !b.IsZero() && b.Before(a) {
		return b
	}
	return a
}
