package renewal

import (
	"context"
	"crypto"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"strconv"
	"time"
	"unicode/utf8"
)

// How an issuance ended.
const (
	resultIssued    = "issued"
	resultTemporary = "temporary"
	resultPermanent = "permanent"
	resultCancelled = "cancelled"
)

// outcome is how an issuance ended; err is set when the Store did not answer.
type outcome struct {
	it  *item
	err error
}

// storeTimeout bounds the writes around an issuance, which go on while the
// scheduler drains.
const storeTimeout = 30 * time.Second

// attempt is an issuance on its way.
type attempt struct {
	c        *Certificate
	current  *Secret // what is there; nil: nothing
	next     *Secret // what holds key and request
	key      crypto.Signer
	csr      *x509.CertificateRequest
	repeated bool
}

// issue obtains one certificate. When ctx ends on the way, everything is left
// as the next issue can take it up.
func (s *Scheduler) issue(ctx context.Context, it *item) error {
	store, end := context.WithTimeout(context.WithoutCancel(ctx), storeTimeout)
	defer end()
	c, err := s.cfg.Store.Get(store, it.key)
	if errors.Is(err, ErrNotFound) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("read certificate %s: %w", it.key, err)
	}
	issuer := s.cfg.Issuers(it.key.Namespace, c.Spec.IssuerRef)
	if c.Validate() != nil || issuer == nil || c.Metadata.DeletionTimestamp != nil {
		return nil // the next look says so
	}
	a := &attempt{c: c}
	if a.current, err = s.secret(store, Key{it.key.Namespace, c.Spec.SecretName}); err != nil {
		return err
	}
	if err := s.prepare(store, a); err != nil {
		return err
	}
	if a.stored() && a.current.Annotations[annotationRevision] == strconv.Itoa(a.revision()) && s.inspect(c, a.current).reason == "" {
		return s.finish(store, it, a) // and then the power failed
	}
	started := time.Now()
	issued, err := s.ask(ctx, issuer, a)
	result := resultIssued
	switch failure := (*Failure)(nil); {
	case err == nil:
	case ctx.Err() != nil:
		result = resultCancelled
	case errors.As(err, &failure) && failure.Permanent:
		result = resultPermanent
	default:
		result = resultTemporary
	}
	s.metrics.asked(c.issuerKey(), result, time.Since(started))
	store, end = context.WithTimeout(context.WithoutCancel(ctx), storeTimeout)
	defer end()
	switch result {
	case resultCancelled:
		s.log.Info("issuance cancelled; it is taken up at the next start", "certificate", it.key.String(), "request", a.next.Annotations[annotationRequest])
		return nil
	case resultIssued:
		if err := s.keep(store, a, issued); err != nil {
			return err
		}
		return s.finish(store, it, a)
	}
	return s.fail(store, a, err)
}

// stored reports whether the answer to the request is in the Secret.
func (a *attempt) stored() bool {
	return a.current != nil && a.next.Annotations[annotationRequest] != "" && a.current.Annotations[annotationRequest] == a.next.Annotations[annotationRequest]
}

// requestLife is how old a request may be that is made again.
const requestLife = 24 * time.Hour

// prepare takes up the request that was stored, or stores a new one, and says
// in the status that an issuance runs.
func (s *Scheduler) prepare(ctx context.Context, a *attempt) error {
	k := a.c.Key()
	nextKey := Key{k.Namespace, k.Name + NextPrivateKeySuffix}
	var err error
	if a.next, err = s.secret(ctx, nextKey); err != nil {
		return err
	}
	if a.repeated = a.next != nil && s.usable(a); !a.repeated {
		if err := s.makeRequest(a); err != nil {
			return err
		}
		if err := s.cfg.Store.PutSecret(ctx, a.next); err != nil {
			return fmt.Errorf("store the next key of %s: %w", k, err)
		}
	}
	reason, text := ReasonRenewing, "Issuing certificate"
	if p := s.inspect(a.c, a.current); p.reason != "" {
		reason, text = p.reason, p.text
	}
	return updateStatus(ctx, s.cfg.Store, k, func(c *Certificate) {
		c.Status.NextPrivateKeySecretName = &nextKey.Name
		if !c.Status.Is(Issuing) {
			c.Status.SetCondition(s.cfg.Now(), c.Metadata.Generation, Issuing, True, reason, text)
		}
	})
}

// usable reports whether the stored request still asks for what the spec does.
func (s *Scheduler) usable(a *attempt) bool {
	if a.stored() && a.current.Annotations[annotationRevision] != strconv.Itoa(a.revision()) {
		return false // left over from the last issuance
	}
	made, now := annotatedTime(a.next, annotationMade), s.cfg.Now()
	if a.next.Annotations[annotationHash] != a.fingerprint() || now.Sub(made) > requestLife || made.Sub(now) > requestLife {
		return false
	}
	block, _ := pem.Decode(a.next.Data[csrData])
	key, err := decodeKey(a.next.Data[TLSKey])
	if block == nil || err != nil || keyFits(key, s.keyOf(a.c)) != "" {
		return false
	}
	csr, err := x509.ParseCertificateRequest(block.Bytes)
	if err != nil || !samePublic(csr.PublicKey, key.Public()) {
		return false
	}
	a.key, a.csr = key, csr
	return true
}

// fingerprint says what is asked for, and of whom.
func (a *attempt) fingerprint() string {
	return a.c.Spec.requestHash() + " " + a.c.Spec.IssuerRef.String()
}

func (s *Scheduler) makeRequest(a *attempt) error {
	kind := s.keyOf(a.c)
	var err error
	if kind.RotationPolicy == RotateNever && a.current != nil {
		if key, err := decodeKey(a.current.Data[TLSKey]); err == nil && keyFits(key, kind) == "" {
			a.key = key
		}
	}
	if a.key == nil {
		if a.key, err = makeKey(kind); err != nil {
			return fmt.Errorf("make a key for %s: %w", a.c.Key(), err)
		}
	}
	der, err := a.c.Spec.request(a.key)
	if err != nil {
		return fmt.Errorf("make the request of %s: %w", a.c.Key(), err)
	}
	if a.csr, err = x509.ParseCertificateRequest(der); err != nil {
		return fmt.Errorf("make the request of %s: %w", a.c.Key(), err)
	}
	keyPEM, err := encodeKey(a.key, kind.Encoding)
	if err != nil {
		return fmt.Errorf("encode the key of %s: %w", a.c.Key(), err)
	}
	k := a.c.Key()
	a.next = &Secret{
		Namespace: k.Namespace, Name: k.Name + NextPrivateKeySuffix,
		Annotations: map[string]string{
			annotationCertificate: k.Name, annotationRequest: rand.Text(), annotationHash: a.fingerprint(),
			annotationMade: s.cfg.Now().UTC().Format(time.RFC3339),
		},
		Data: map[string][]byte{TLSKey: keyPEM, csrData: pemOf("CERTIFICATE REQUEST", der)},
	}
	return nil
}

// ask returns the chain that the issuer signed, checked.
func (s *Scheduler) ask(ctx context.Context, issuer Issuer, a *attempt) (*signed, error) {
	ctx, cancel := context.WithTimeout(ctx, s.cfg.IssueTimeout)
	defer cancel()
	r := &Request{
		ID: a.next.Annotations[annotationRequest], Repeated: a.repeated, Certificate: a.c.Key(), Revision: a.revision(),
		Issuer: a.c.Spec.IssuerRef, CSR: a.csr.Raw, IsCA: a.c.Spec.IsCA, Usages: a.c.Spec.usages(),
	}
	if a.c.Spec.Duration != nil {
		r.Duration = a.c.Spec.Duration.Duration
	}
	if finder, ok := issuer.(Finder); ok && r.Repeated {
		switch issued, err := finder.Find(ctx, r); {
		case err == nil:
			return s.check(issued, a)
		case !errors.Is(err, ErrNotIssued):
			return nil, fmt.Errorf("ask %s what became of request %s: %w", r.Issuer, r.ID, err)
		}
	}
	issued, err := issuer.Issue(ctx, r)
	if err != nil {
		return nil, err
	}
	return s.check(issued, a)
}

func (a *attempt) revision() int {
	if r := a.c.Status.Revision; r != nil {
		return *r + 1
	}
	return 1
}

// finish writes the status of a success and drops the request. The status is
// whole, because nobody may be there to look again.
func (s *Scheduler) finish(ctx context.Context, it *item, a *attempt) error {
	k, now := a.c.Key(), s.cfg.Now()
	chain, err := decodeChain(a.current.Data[TLSCert])
	if err != nil {
		return fmt.Errorf("read the new certificate of %s: %w", k, err)
	}
	leaf := chain[0]
	it.memo.issued = now
	err = updateStatus(ctx, s.cfg.Store, k, func(c *Certificate) {
		n := a.revision()
		c.Status.Revision = &n
		c.Status.RemoveCondition(Issuing)
		c.Status.LastFailureTime, c.Status.FailedIssuanceAttempts, c.Status.NextPrivateKeySecretName, c.Status.RenewalTime = nil, nil, nil, nil
		c.Status.NotBefore, c.Status.NotAfter = NewTime(leaf.NotBefore), NewTime(leaf.NotAfter)
		if at := s.plan(it, c, a.current, leaf, now); !at.IsZero() {
			c.Status.RenewalTime = NewTime(at)
		}
		if p := s.inspect(c, a.current); p.reason == "" && !now.Before(leaf.NotBefore) {
			c.Status.SetCondition(now, c.Metadata.Generation, Ready, True, ReasonReady, textReady)
		}
	})
	if err != nil {
		return err
	}
	if err := s.cfg.Store.DeleteSecret(ctx, k.Namespace, a.next.Name); err != nil {
		it.memo.tidied = false
		return fmt.Errorf("delete the request of %s: %w", k, err)
	}
	s.log.Info("certificate issued", "certificate", k.String(), "issuer", a.c.Spec.IssuerRef.String(), "revision", a.revision(), "serial", leaf.SerialNumber.Text(16), "not_after", leaf.NotAfter)
	return nil
}

const textReady = "Certificate is up to date and has not expired"

// maxMessage bounds what an issuer's error takes in a status.
const maxMessage = 1024

// fail writes the status of a failure. After a temporary one the request is
// kept, because nobody knows whether it was heard.
func (s *Scheduler) fail(ctx context.Context, a *attempt, cause error) error {
	k, now := a.c.Key(), s.cfg.Now()
	failure := &Failure{Err: cause}
	errors.As(cause, &failure)
	next := a.next.Clone()
	delete(next.Annotations, annotationRetry)
	delete(next.Annotations, annotationPermanent)
	if failure.RetryAfter > 0 {
		next.Annotations[annotationRetry] = now.Add(min(failure.RetryAfter, maxRetryAfter)).Add(time.Second - 1).UTC().Format(time.RFC3339)
	}
	if failure.Permanent {
		next.Annotations[annotationPermanent] = "true"
		delete(next.Annotations, annotationHash) // what was refused is not asked for again
		next.Data = nil
	}
	if err := s.cfg.Store.PutSecret(ctx, next); err != nil {
		return fmt.Errorf("store the request of %s: %w", k, err)
	}
	text := cause.Error()
	if len(text) > maxMessage {
		text = text[:maxMessage]
		for !utf8.ValidString(text) {
			text = text[:len(text)-1]
		}
		text += "…"
	}
	attempts := 1
	err := updateStatus(ctx, s.cfg.Store, k, func(c *Certificate) {
		if n := c.Status.FailedIssuanceAttempts; n != nil && *n > 0 {
			attempts = *n + 1
		}
		c.Status.FailedIssuanceAttempts, c.Status.LastFailureTime = &attempts, NewTime(now)
		c.Status.SetCondition(now, a.c.Metadata.Generation, Issuing, False, ReasonFailed, "The certificate request has failed to complete and will be retried: "+text)
		if failure.Permanent {
			c.Status.NextPrivateKeySecretName = nil
		}
	})
	s.log.Error("certificate not issued; trying again later", "certificate", k.String(), "issuer", a.c.Spec.IssuerRef.String(), "attempts", attempts, "permanent", failure.Permanent, "error", text)
	return err
}
