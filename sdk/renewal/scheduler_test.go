package renewal

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
)

func TestACertificateIsIssuedAndRenewedInTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var told []string
		registry := prometheus.NewRegistry()
		w := newWorld(t, func(c *Config) {
			c.Registerer = registry
			c.Updated = func(c *Certificate, s *Secret) {
				pair, err := s.TLS()
				if err != nil {
					t.Error(err)
				}
				told = append(told, pair.Leaf.DNSNames[0])
			}
		}, certificate("a"))
		w.ca.lean(func(ca *watchful) { ca.takes = time.Minute })
		w.start()
		c := w.want("a", Issuing, True, ReasonDoesNotExist)
		w.want("a", Ready, False, ReasonDoesNotExist)
		if c.Status.NextPrivateKeySecretName == nil || *c.Status.NextPrivateKeySecretName != "a.next-private-key" {
			t.Errorf("the next key is in %v", c.Status.NextPrivateKeySecretName)
		}
		sleep(time.Minute)
		c = w.want("a", Ready, True, ReasonReady)
		s := c.Status
		if s.Condition(Issuing) != nil || s.NextPrivateKeySecretName != nil || *s.Revision != 1 || s.FailedIssuanceAttempts != nil || s.LastFailureTime != nil {
			t.Errorf("after the issuance: %+v", s)
		}
		if life := s.NotAfter.Sub(s.NotBefore.Time); life != 90*day {
			t.Errorf("it lives %s", life)
		}
		if w.store.secrets[Key{"default", "a.next-private-key"}].secret != nil {
			t.Error("the next key is still there")
		}
		due, earliest := s.NotAfter.Add(-30*day), s.NotAfter.Add(-36*day)
		if at := s.RenewalTime.Time; at.After(due) || at.Before(earliest.Add(-time.Second)) {
			t.Errorf("renewalTime %s is not within 6 days before %s", at, due)
		}
		labels := prometheus.Labels{"namespace": "default", "name": "a", "issuer": "default/Issuer/ca"}
		if got := testutil.ToFloat64(w.sched.metrics.expires.With(labels)); got != float64(s.NotAfter.Unix()) {
			t.Errorf("the metric says it ends at %f", got)
		}
		if got := testutil.ToFloat64(w.sched.metrics.renews.With(labels)); got != float64(s.RenewalTime.Unix()) {
			t.Errorf("the metric says it is renewed at %f", got)
		}
		sleep(time.Until(s.RenewalTime.Time) - time.Second)
		if w.ca.count("asked") != 1 {
			t.Fatalf("the CA was asked %d times before renewalTime", w.ca.count("asked"))
		}
		sleep(2 * time.Second)
		if w.ca.count("asked") != 2 {
			t.Fatalf("the CA was asked %d times at renewalTime", w.ca.count("asked"))
		}
		w.want("a", Issuing, True, ReasonRenewing)
		w.want("a", Ready, True, ReasonReady) // what is there is still good
		sleep(time.Minute)
		if w.revision("a") != 2 || len(told) != 2 {
			t.Errorf("revision %d, told of %v", w.revision("a"), told)
		}
		w.store.Delete(Key{"default", "a"})
		synctest.Wait()
		if n, err := testutil.GatherAndCount(registry, "legation_certificate_ready", "legation_certificate_expiry_timestamp_seconds"); err != nil || n != 0 {
			t.Errorf("%d series of a certificate that is gone (%v)", n, err)
		}
		w.stop()
	})
}

// TestWhatTriggersAnIssuance: each row changes something behind the
// scheduler's back; within a sweep there is a new certificate.
func TestWhatTriggersAnIssuance(t *testing.T) {
	secret := func(w *world) *Secret {
		s, err := w.store.GetSecret(t.Context(), "default", "a-tls")
		if err != nil {
			w.t.Fatal(err)
		}
		return s
	}
	put := func(w *world, s *Secret) {
		if err := w.store.PutSecret(t.Context(), s); err != nil {
			w.t.Fatal(err)
		}
	}
	apply := func(w *world, edit func(*CertificateSpec)) {
		c := w.get("a")
		edit(&c.Spec)
		if err := w.store.Apply(c); err != nil {
			w.t.Fatal(err)
		}
	}
	for _, tt := range []struct {
		name   string
		change func(*world)
		reason string // while it is being issued; "": nothing is issued
		within time.Duration
	}{
		{"the Secret was deleted", func(w *world) { w.store.DeleteSecret(t.Context(), "default", "a-tls") }, ReasonDoesNotExist, 10 * time.Minute},
		{"the Secret was emptied", func(w *world) { s := secret(w); s.Data = nil; put(w, s) }, ReasonMissingData, 10 * time.Minute},
		{"the certificate is another key's", func(w *world) {
			s := secret(w)
			key, _ := makeKey(CertificatePrivateKey{Algorithm: ECDSA})
			s.Data[TLSKey], _ = encodeKey(key, PKCS1)
			put(w, s)
		}, ReasonInvalidKeyPair, 10 * time.Minute},
		{"the key cannot be read", func(w *world) { s := secret(w); s.Data[TLSKey] = []byte("x"); put(w, s) }, ReasonInvalidKeyPair, 10 * time.Minute},
		{"the certificate cannot be read", func(w *world) { s := secret(w); s.Data[TLSCert] = []byte("x"); put(w, s) }, ReasonInvalidCertificate, 10 * time.Minute},
		{"a name was added", func(w *world) {
			apply(w, func(s *CertificateSpec) { s.DNSNames = append(s.DNSNames, "b.example.org") })
		}, ReasonRequestChanged, 0},
		{"the duration was changed", func(w *world) { apply(w, func(s *CertificateSpec) { s.Duration = NewDuration(30 * day) }) }, ReasonRequestChanged, 0},
		{"a usage was added", func(w *world) { apply(w, func(s *CertificateSpec) { s.Usages = []KeyUsage{"server auth"} }) }, ReasonRequestChanged, 0},
		{"the key is to be another one", func(w *world) { apply(w, func(s *CertificateSpec) { s.PrivateKey.Size = 384 }) }, ReasonSecretMismatch, 0},
		{"somebody asked for it", func(w *world) {
			if err := Trigger(t.Context(), w.store, Key{"default", "a"}); err != nil {
				w.t.Fatal(err)
			}
		}, ReasonManuallyTriggered, 0},
		{"somebody asked the scheduler for it", func(w *world) {
			if err := w.sched.Renew(t.Context(), Key{"default", "a"}); err != nil {
				w.t.Fatal(err)
			}
		}, ReasonManuallyTriggered, 0},
		{"it moved to another Secret", func(w *world) { apply(w, func(s *CertificateSpec) { s.SecretName = "other" }) }, ReasonDoesNotExist, 0},
		{"a Secret that others made lacks a name", func(w *world) {
			s := secret(w)
			s.Annotations = nil
			put(w, s)
			apply(w, func(s *CertificateSpec) { s.DNSNames = append(s.DNSNames, "b.example.org") })
		}, ReasonSecretMismatch, 0},
		{"a Secret that others made has all names", func(w *world) { s := secret(w); s.Annotations = nil; put(w, s) }, "", 10 * time.Minute},
		{"names in another order", func(w *world) {
			apply(w, func(s *CertificateSpec) { s.DNSNames = []string{"a.example.org", "a.example.org"} })
		}, "", 10 * time.Minute},
		{"a label was changed", func(w *world) {
			c := w.get("a")
			c.Metadata.Labels = map[string]string{"a": "b"}
			w.store.Apply(c)
		}, "", 10 * time.Minute},
		{"renewBefore was changed", func(w *world) { apply(w, func(s *CertificateSpec) { s.RenewBefore = NewDuration(20 * day) }) }, "", 10 * time.Minute},
		{"renewBefore was changed so that it is due now", func(w *world) { apply(w, func(s *CertificateSpec) { s.RenewBefore = NewDuration(90*day - time.Hour) }) }, ReasonRenewing, 90 * time.Minute},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t, func(c *Config) { c.IssueTimeout = 48 * time.Hour }, certificate("a"))
				w.start()
				w.want("a", Ready, True, ReasonReady)
				w.ca.lean(func(ca *watchful) { ca.takes = 24 * time.Hour })
				sleep(5 * time.Minute)
				w.t = t
				tt.change(w)
				sleep(tt.within)
				if tt.reason == "" {
					w.want("a", Ready, True, ReasonReady)
					if w.ca.count("asked") != 1 {
						t.Errorf("the CA was asked %d times", w.ca.count("asked"))
					}
				} else {
					w.want("a", Issuing, True, tt.reason)
					w.ca.lean(func(ca *watchful) { ca.takes = 0 })
					sleep(24*time.Hour + 5*time.Minute)
					c := w.want("a", Ready, True, ReasonReady)
					if *c.Status.Revision != 2 || w.ca.count("asked") != 2 {
						t.Errorf("revision %d, the CA was asked %d times", *c.Status.Revision, w.ca.count("asked"))
					}
				}
				w.stop()
			})
		})
	}
}

func TestAnotherIssuerIssuesAnew(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, nil, certificate("a"))
		other := &watchful{Issuer: newCA(t, 1000*day)}
		ours := w.sched.cfg.Issuers
		w.sched.cfg.Issuers = func(ns string, ref IssuerRef) Issuer {
			if ref.Name == "other" {
				return other
			}
			return ours(ns, ref)
		}
		w.start()
		c := w.get("a")
		c.Spec.IssuerRef.Name = "other"
		if err := w.store.Apply(c); err != nil {
			t.Fatal(err)
		}
		sleep(2 * time.Minute)
		w.want("a", Ready, True, ReasonReady)
		if other.count("asked") != 1 || w.revision("a") != 2 {
			t.Errorf("the other CA was asked %d times; revision %d", other.count("asked"), w.revision("a"))
		}
		w.stop()
	})
}

func TestAFailureIsTriedAgainLaterAndLater(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, nil, certificate("a"))
		began := time.Now()
		var tries []time.Duration
		w.ca.fails = func(*Request) error {
			tries = append(tries, time.Since(began).Round(time.Second))
			return errors.New("the CA is on holiday")
		}
		w.start()
		c := w.want("a", Issuing, False, ReasonFailed)
		if m := c.Status.Condition(Issuing).Message; !strings.Contains(m, "the CA is on holiday") {
			t.Errorf("the message is %q", m)
		}
		sleep(100 * time.Hour)
		if want := "[0s 1h0m0s 3h0m0s 7h0m0s 15h0m0s 31h0m0s 63h0m0s 95h0m0s]"; fmt.Sprint(tries) != want {
			t.Errorf("tried after %v; want %s", tries, want)
		}
		c = w.get("a")
		if *c.Status.FailedIssuanceAttempts != 8 || c.Status.LastFailureTime.Sub(began) != 95*time.Hour {
			t.Errorf("%d attempts, the last failed after %s", *c.Status.FailedIssuanceAttempts, c.Status.LastFailureTime.Sub(began))
		}
		w.ca.lean(func(ca *watchful) { ca.fails = nil })
		sleep(32 * time.Hour)
		c = w.want("a", Ready, True, ReasonReady)
		if c.Status.FailedIssuanceAttempts != nil || c.Status.LastFailureTime != nil || c.Status.Condition(Issuing) != nil {
			t.Errorf("after the success: %+v", c.Status)
		}
		w.stop()
	})
}

func TestWhatEndsABackoff(t *testing.T) {
	for _, tt := range []struct {
		name string
		do   func(*world)
		want bool // is it tried at once
	}{
		{"a changed spec does", func(w *world) {
			c := w.get("a")
			c.Spec.DNSNames = []string{"b.example.org"}
			w.store.Apply(c)
		}, true},
		{"somebody's hand does, and fails too", func(w *world) { w.sched.Renew(context.Background(), Key{"default", "a"}) }, true},
		{"a changed label does not", func(w *world) {
			c := w.get("a")
			c.Metadata.Labels = map[string]string{"x": "y"}
			w.store.Apply(c)
		}, false},
		{"a reload does not", func(w *world) { w.sched.Reload() }, false},
		{"a restart does not", func(w *world) { w.stop(); w.start() }, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t, nil, certificate("a"))
				w.ca.fails = func(*Request) error { return errors.New("no") }
				w.start()
				sleep(5 * time.Minute)
				tt.do(w)
				sleep(20 * time.Minute)
				if got := w.ca.count("asked") == 2; got != tt.want || w.ca.count("asked") > 2 {
					t.Errorf("the CA was asked %d times", w.ca.count("asked"))
				}
				w.stop()
			})
		})
	}
}

func TestWhatIsNotIssued(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		off := certificate("off")
		off.Spec.Renewal = &CertificateRenewal{Policy: Disabled}
		nobody := certificate("nobody", func(s *CertificateSpec) { s.IssuerRef.Name = "nobody" })
		first, second := certificate("first"), certificate("second")
		second.Spec.SecretName = first.Spec.SecretName
		w := newWorld(t, nil, off, nobody, first, second)
		w.start()
		sleep(time.Minute)
		w.want("off", Ready, True, ReasonReady)
		if at := w.get("off").Status.RenewalTime; at != nil {
			t.Errorf("what is never renewed is to be renewed at %s", at)
		}
		c := w.want("nobody", Issuing, Unknown, ReasonNoIssuer)
		if m := c.Status.Condition(Issuing).Message; !strings.Contains(m, "there is no issuer Issuer/nobody") {
			t.Errorf("the message is %q", m)
		}
		ready := 0
		for _, name := range []string{"first", "second"} {
			if c := w.get(name); c.Status.Is(Ready) {
				ready++
			} else if r := c.Status.Condition(Ready); r.Reason != ReasonIncorrectCertificate || !strings.Contains(r.Message, "give this one another secretName") {
				t.Errorf("%s: %+v", name, r)
			}
		}
		if ready != 1 || w.ca.count("asked") != 2 {
			t.Errorf("%d of two with one Secret are ready; the CA was asked %d times", ready, w.ca.count("asked"))
		}
		sleep(91 * day)
		w.want("off", Ready, False, ReasonExpired)
		w.stop()
	})
}

func TestTheSecretOfACertificateThatIsGoneIsTakenOver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		first, second := certificate("first"), certificate("second")
		second.Spec.SecretName = first.Spec.SecretName
		w := newWorld(t, nil, first)
		w.start()
		if err := w.store.Apply(second); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		w.want("second", Ready, False, ReasonIncorrectCertificate)
		w.store.Delete(first.Key())
		sleep(11 * time.Minute)
		w.want("second", Ready, True, ReasonReady)
		w.stop()
	})
}

func TestKeysAreRotatedOrKept(t *testing.T) {
	for _, tt := range []struct {
		policy RotationPolicy
		same   bool
	}{{"", false}, {RotateAlways, false}, {RotateNever, true}} {
		t.Run("rotationPolicy "+string(tt.policy), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t, nil, certificate("a", func(s *CertificateSpec) { s.PrivateKey.RotationPolicy = tt.policy }))
				w.start()
				before, _ := w.store.GetSecret(t.Context(), "default", "a-tls")
				w.sched.Renew(t.Context(), Key{"default", "a"})
				sleep(2 * time.Minute)
				after, _ := w.store.GetSecret(t.Context(), "default", "a-tls")
				if w.revision("a") != 2 || (string(before.Data[TLSKey]) == string(after.Data[TLSKey])) != tt.same {
					t.Errorf("revision %d; is the key the same: want %v", w.revision("a"), tt.same)
				}
				w.stop()
			})
		})
	}
}

func TestTheSecretHoldsWhatCertManagersDoes(t *testing.T) {
	for _, tt := range []struct {
		name      string
		algorithm KeyAlgorithm
		encoding  KeyEncoding
		head      string
	}{
		{"RSA by default", "", "", "-----BEGIN RSA PRIVATE KEY-----"},
		{"RSA in PKCS #8", RSA, PKCS8, "-----BEGIN PRIVATE KEY-----"},
		{"ECDSA in SEC 1", ECDSA, PKCS1, "-----BEGIN EC PRIVATE KEY-----"},
		{"ECDSA in PKCS #8", ECDSA, PKCS8, "-----BEGIN PRIVATE KEY-----"},
		{"Ed25519 in PKCS #8, there is nothing else", Ed25519, PKCS1, "-----BEGIN PRIVATE KEY-----"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := certificate("a", func(s *CertificateSpec) {
				s.PrivateKey = &CertificatePrivateKey{Algorithm: tt.algorithm, Encoding: tt.encoding}
				s.CommonName, s.Subject = "a", &X509Subject{Organizations: []string{"Example"}}
				s.URIs, s.IPAddresses, s.EmailAddresses = []string{"spiffe://example.org/a"}, []string{"192.0.2.1"}, []string{"a@example.org"}
				s.Usages = []KeyUsage{"digital signature", "server auth", "client auth"}
				s.SecretTemplate = &CertificateSecretTemplate{Annotations: map[string]string{"x": "y"}, Labels: map[string]string{"l": "m"}}
				s.AdditionalOutputFormats = []CertificateAdditionalOutputFormat{{"CombinedPEM"}, {"DER"}}
			})
			w := newWorld(t, nil, c)
			if err := w.sched.RunOnce(t.Context()); err != nil {
				t.Fatal(err)
			}
			s, err := w.store.GetSecret(t.Context(), "default", "a-tls")
			if err != nil {
				t.Fatal(err)
			}
			pair, err := s.TLS()
			if err != nil {
				t.Fatal(err)
			}
			leaf := pair.Leaf
			if !strings.HasPrefix(string(s.Data[TLSKey]), tt.head) {
				t.Errorf("the key begins %.40q", s.Data[TLSKey])
			}
			if leaf.Subject.String() != "CN=a,O=Example" || leaf.URIs[0].String() != "spiffe://example.org/a" || leaf.IPAddresses[0].String() != "192.0.2.1" || leaf.EmailAddresses[0] != "a@example.org" {
				t.Errorf("it is of %s, %v, %v, %v", leaf.Subject, leaf.URIs, leaf.IPAddresses, leaf.EmailAddresses)
			}
			if leaf.KeyUsage != x509.KeyUsageDigitalSignature || len(leaf.ExtKeyUsage) != 2 {
				t.Errorf("it is for %v, %v", leaf.KeyUsage, leaf.ExtKeyUsage)
			}
			if s.Annotations["x"] != "y" || s.Labels["l"] != "m" || s.Annotations["cert-manager.io/certificate-name"] != "a" || s.Annotations["cert-manager.io/issuer-kind"] != "Issuer" {
				t.Errorf("annotations %v, labels %v", s.Annotations, s.Labels)
			}
			if string(s.Data["tls-combined.pem"]) != string(s.Data[TLSKey])+string(s.Data[TLSCert]) || len(s.Data["key.der"]) == 0 {
				t.Error("the additional formats are wrong")
			}
			if root, err := decodeChain(s.Data[CACert]); err != nil || leaf.CheckSignatureFrom(root[0]) != nil {
				t.Errorf("ca.crt is not the root: %v", err)
			}
			if text := fmt.Sprintf("%v %+v %s %#v", s, *s, s, *s); strings.Contains(text, "BEGIN") {
				t.Errorf("a Secret prints its key: %.80s", text)
			}
		})
	}
}
