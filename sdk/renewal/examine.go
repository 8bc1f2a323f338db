package renewal

import (
	"context"
	"crypto/sha256"
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
	due     bool
	next    time.Time // when to look again, if not due; zero: at the next change
	issuer  string
	urgency time.Time
	trouble error // why it is not Ready
	err     error // the Store did not answer
}

// examine decides what is to be done about one certificate, and writes its
// status.
func (s *Scheduler) examine(ctx context.Context, it *item) verdict {
	v := verdict{it: it}
	for range 10 {
		c, err := s.cfg.Store.Get(ctx, it.key)
		if errors.Is(err, ErrNotFound) {
			s.letGo(it)
			v.gone, v.err = true, s.tidy(ctx, it.key)
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
		v = verdict{it: it, issuer: c.issuerKey()}
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
	// While something is being issued the request is in use: it is looked at
	// again afterwards.
	if !it.memo.tidied && !c.Status.Is(Issuing) && c.Status.LastFailureTime == nil {
		if err := s.tidy(ctx, it.key); err != nil {
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
// power failed, or of a certificate that is gone.
func (s *Scheduler) tidy(ctx context.Context, k Key) error {
	next := Key{k.Namespace, k.Name + NextPrivateKeySuffix}
	if !isSubdomain(next.Name) {
		return nil // its spec was refused, and nothing ever asked for
	}
	left, err := s.secret(ctx, next)
	if err != nil || left == nil || left.Annotations[annotationCertificate] != k.Name {
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
