package renewal

import (
	"strings"
	"testing"
	"time"
)

const day = 24 * time.Hour

func TestWhenACertificateIsDue(t *testing.T) {
	begin := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	pct := func(n int32) *int32 { return &n }
	for _, tt := range []struct {
		name   string
		spec   CertificateSpec
		life   time.Duration
		issued time.Duration // after notBefore; -1: not known
		want   time.Duration // after notBefore; -1: never
	}{
		{"a third of its life before its end, by default", CertificateSpec{}, 90 * day, 0, 60 * day},
		{"the third is that of the life that it really has", CertificateSpec{Duration: NewDuration(90 * day)}, 30 * day, 0, 20 * day},
		{"renewBefore counts from its end", CertificateSpec{RenewBefore: NewDuration(10 * day)}, 90 * day, 0, 80 * day},
		{"renewBeforePercentage is of its real life", CertificateSpec{RenewBeforePercentage: pct(25)}, 60 * day, 0, 45 * day},
		{"a percentage of a hundred years does not overflow", CertificateSpec{RenewBeforePercentage: pct(50)}, 36500 * day, 0, 18250 * day},
		{"renewBefore that is as long as its real life is a third", CertificateSpec{RenewBefore: NewDuration(30 * day)}, 30 * day, 0, 20 * day},
		{"renewBefore that is longer than its real life is a third", CertificateSpec{RenewBefore: NewDuration(60 * day)}, 30 * day, 0, 20 * day},
		{"when 72 hours are left, though renewBefore says later", CertificateSpec{RenewBefore: NewDuration(time.Hour)}, 90 * day, 0, 87 * day},
		{"when 72 hours are left, though a percentage says later", CertificateSpec{RenewBeforePercentage: pct(1)}, 90 * day, 0, 87 * day},
		{"when 72 hours are left, though a third is less", CertificateSpec{}, 7 * day, 0, 4 * day},
		{"72 hours are never more than half of its life", CertificateSpec{}, 100 * time.Hour, 0, 50 * time.Hour},
		{"a life of just over 72 hours is no renewal for ever", CertificateSpec{}, 72*time.Hour + 2*time.Second, 0, 36*time.Hour + time.Second},
		{"short-lived: 72 hours are renewed at two thirds", CertificateSpec{}, 72 * time.Hour, 0, 48 * time.Hour},
		{"short-lived: a day is renewed at two thirds", CertificateSpec{}, day, 0, 16 * time.Hour},
		{"short-lived: an hour is renewed at two thirds", CertificateSpec{}, time.Hour, 0, 40 * time.Minute},
		{"short-lived: an explicit renewBefore holds", CertificateSpec{RenewBefore: NewDuration(2 * time.Hour)}, day, 0, 22 * time.Hour},
		{"short-lived: half life when so asked", CertificateSpec{RenewBeforePercentage: pct(50)}, day, 0, 12 * time.Hour},
		{"back-dated by most of its life: two thirds of what was left", CertificateSpec{}, time.Hour, 54 * time.Minute, 58 * time.Minute},
		{"what was obtained after it was due: two thirds of what was left", CertificateSpec{RenewBefore: NewDuration(30 * day)}, 60 * day, 45 * day, 55 * day},
		{"it is not known when it was obtained", CertificateSpec{RenewBefore: NewDuration(30 * day)}, 60 * day, -1, 30 * day},
		{"never, when the policy is Disabled", CertificateSpec{Renewal: &CertificateRenewal{Policy: Disabled}}, 90 * day, 0, -1},
		{"the policy RenewBefore is the ordinary one", CertificateSpec{Renewal: &CertificateRenewal{Policy: RenewBefore}}, 90 * day, 0, 60 * day},
		{"fractions of a second are cut off", CertificateSpec{}, 100 * time.Second, 0, 66 * time.Second},
	} {
		t.Run(tt.name, func(t *testing.T) {
			issued := begin.Add(tt.issued)
			if tt.issued < 0 {
				issued = time.Time{}
			}
			got, ok := RenewalTime(&tt.spec, begin, begin.Add(tt.life), issued)
			if ok != (tt.want >= 0) || ok && !got.Equal(begin.Add(tt.want)) {
				t.Errorf("due %s after its begin (%v); want %s", got.Sub(begin), ok, tt.want)
			}
		})
	}
}

// TestRenewingEndsHoweverShortTheIssuerMakesIt: each certificate is due later
// than it was obtained, while it is valid.
func TestRenewingEndsHoweverShortTheIssuerMakesIt(t *testing.T) {
	begin := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	pct := int32(99)
	for _, spec := range []CertificateSpec{{}, {RenewBefore: NewDuration(89 * day)}, {RenewBeforePercentage: &pct}} {
		for life := 2 * time.Second; life < 400*day; life = (life*5/4 + time.Second).Truncate(time.Second) {
			for _, backdate := range []time.Duration{0, time.Minute, time.Hour, (life / 2).Truncate(time.Second), life - 2*time.Second} {
				if backdate >= life-time.Second {
					continue
				}
				issued := begin.Add(backdate)
				at, _ := RenewalTime(&spec, begin, begin.Add(life), issued)
				if !at.After(issued) && begin.Add(life).Sub(issued) > 2*time.Second || !at.Before(begin.Add(life)) {
					t.Fatalf("life %s, obtained after %s: due %s after its begin", life, backdate, at.Sub(begin))
				}
			}
		}
	}
}

func TestBackoff(t *testing.T) {
	std := Backoff{}.withDefaults()
	for _, tt := range []struct {
		name      string
		b         Backoff
		n         int
		left      time.Duration
		permanent bool
		want      time.Duration
	}{
		{"an hour after the first failure", std, 1, 90 * day, false, time.Hour},
		{"doubled by the second", std, 2, 90 * day, false, 2 * time.Hour},
		{"sixteen hours after the fifth", std, 5, 90 * day, false, 16 * time.Hour},
		{"32 hours at most", std, 7, 90 * day, false, 32 * time.Hour},
		{"32 hours after very many", std, 1 << 30, 90 * day, false, 32 * time.Hour},
		{"a count that somebody patched to 0 is the first", std, 0, 90 * day, false, time.Hour},
		{"a third of what is left when that is less", std, 5, 9 * time.Hour, false, 3 * time.Hour},
		{"five minutes at least", std, 5, time.Minute, false, 5 * time.Minute},
		{"what has ended does not hurry any more", std, 3, -time.Hour, false, 4 * time.Hour},
		{"nothing there does not hurry", std, 1, 0, false, time.Hour},
		{"a permanent failure waits longest", std, 1, time.Hour, true, 32 * time.Hour},
		{"as set", Backoff{Min: time.Second, Max: 10 * time.Second}, 3, day, false, 4 * time.Second},
		{"as set, at most", Backoff{Min: time.Second, Max: 10 * time.Second}, 5, day, false, 10 * time.Second},
		{"as set, least is kept near the end", Backoff{Min: time.Second, Max: 10 * time.Second}, 5, time.Second, false, time.Second},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if got := tt.b.delay(tt.n, tt.left, tt.permanent); got != tt.want {
				t.Errorf("%s; want %s", got, tt.want)
			}
		})
	}
}

func TestWhatASpecMustNotSay(t *testing.T) {
	pct := func(n int32) *int32 { return &n }
	for _, tt := range []struct {
		name string
		edit func(*Certificate)
		want string // "": allowed
	}{
		{"a plain spec is allowed", func(*Certificate) {}, ""},
		{"renewBefore as long as duration", func(c *Certificate) {
			c.Spec.Duration, c.Spec.RenewBefore = NewDuration(30*day), NewDuration(30*day)
		}, "spec.renewBefore: 720h (30 days) is not below spec.duration, 720h (30 days): it would be renewed for ever; leave it out for a third of the lifetime (240h (10 days)), or ask for a longer spec.duration"},
		{"renewBefore longer than duration", func(c *Certificate) {
			c.Spec.Duration, c.Spec.RenewBefore = NewDuration(time.Hour), NewDuration(2*time.Hour)
		}, "spec.renewBefore: 2h0m0s is not below spec.duration, 1h0m0s: it would be renewed for ever"},
		{"renewBefore longer than the 90 days that issuers take", func(c *Certificate) { c.Spec.RenewBefore = NewDuration(91 * day) }, "renewed for ever"},
		{"renewBefore just below duration is allowed", func(c *Certificate) {
			c.Spec.Duration, c.Spec.RenewBefore = NewDuration(time.Hour), NewDuration(59*time.Minute)
		}, ""},
		{"renewBefore below five minutes", func(c *Certificate) { c.Spec.RenewBefore = NewDuration(time.Minute) }, "spec.renewBefore: 1m0s is below the least, 5m0s"},
		{"duration below an hour", func(c *Certificate) { c.Spec.Duration = NewDuration(time.Minute) }, "spec.duration: 1m0s is below the least, 1h0m0s"},
		{"renewBefore and a percentage", func(c *Certificate) {
			c.Spec.RenewBefore, c.Spec.RenewBeforePercentage = NewDuration(day), pct(5)
		}, "spec.renewBefore: given together with renewBeforePercentage; remove one of them"},
		{"a percentage of 100", func(c *Certificate) { c.Spec.RenewBeforePercentage = pct(100) }, "spec.renewBeforePercentage: 100 is not within 1 to 99: it would be renewed for ever"},
		{"a percentage of 0", func(c *Certificate) { c.Spec.RenewBeforePercentage = pct(0) }, "spec.renewBeforePercentage: 0 is not within 1 to 99"},
		{"a percentage that is less than five minutes", func(c *Certificate) {
			c.Spec.Duration, c.Spec.RenewBeforePercentage = NewDuration(time.Hour), pct(5)
		}, "is 3m0s, below the least, 5m0s"},
		{"no name at all", func(c *Certificate) { c.Spec.DNSNames = nil }, "spec: no name at all; give one of commonName, dnsNames, uris, ipAddresses, emailAddresses"},
		{"a common name of 65 characters", func(c *Certificate) { c.Spec.CommonName = strings.Repeat("a", 65) }, "spec.commonName: 65 characters are over the limit of 64; use dnsNames"},
		{"a DNS name with a space", func(c *Certificate) { c.Spec.DNSNames = []string{"a b"} }, "spec.dnsNames[0]: \"a b\" is no DNS name"},
		{"a wildcard within a name", func(c *Certificate) { c.Spec.DNSNames = []string{"a.*.b"} }, "is no DNS name"},
		{"a wildcard is allowed", func(c *Certificate) { c.Spec.DNSNames = []string{"*.example.org"} }, ""},
		{"an address that is none", func(c *Certificate) { c.Spec.IPAddresses = []string{"1.2.3"} }, "spec.ipAddresses[0]: \"1.2.3\" is no IP address"},
		{"a URI without a scheme", func(c *Certificate) { c.Spec.URIs = []string{"example.org/a"} }, "spec.uris[0]"},
		{"a mail address with a name", func(c *Certificate) { c.Spec.EmailAddresses = []string{"A <a@b.c>"} }, "spec.emailAddresses[0]"},
		{"no secret", func(c *Certificate) { c.Spec.SecretName = "" }, "spec.secretName: \"\" is no name"},
		{"a secret that climbs out", func(c *Certificate) { c.Spec.SecretName = "../../etc" }, "spec.secretName"},
		{"a secret with the name of a key to come", func(c *Certificate) { c.Spec.SecretName = "a.next-private-key" }, "spec.secretName: names ending in .next-private-key are used for keys to come"},
		{"a name that climbs out", func(c *Certificate) { c.Metadata.Name = "../a" }, "metadata.name"},
		{"a name that leaves no room for the key to come", func(c *Certificate) { c.Metadata.Name = strings.Repeat("a.", 118) + "a" }, "metadata.name: 237 characters are over the limit of 236"},
		{"the longest name is allowed", func(c *Certificate) { c.Metadata.Name = strings.Repeat("a.", 117) + "aa" }, ""},
		{"a namespace with a dot", func(c *Certificate) { c.Metadata.Namespace = "a.b" }, "metadata.namespace"},
		{"no issuer", func(c *Certificate) { c.Spec.IssuerRef.Name = "" }, "spec.issuerRef.name: missing"},
		{"an issuer's kind without its group", func(c *Certificate) { c.Spec.IssuerRef.Kind = "VenafiIssuer" }, "needs issuerRef.group"},
		{"an issuer's kind of another group is allowed", func(c *Certificate) { c.Spec.IssuerRef = IssuerRef{"a", "Authority", "legation.io"} }, ""},
		{"a usage that there is not", func(c *Certificate) { c.Spec.Usages = []KeyUsage{"serving"} }, "spec.usages[0]: \"serving\" is no key usage"},
		{"RSA with 1024 bits", func(c *Certificate) { c.Spec.PrivateKey = &CertificatePrivateKey{Algorithm: RSA, Size: 1024} }, "spec.privateKey.size: 1024 is not within 2048 to 8192 for RSA"},
		{"ECDSA with 2048 bits", func(c *Certificate) { c.Spec.PrivateKey = &CertificatePrivateKey{Algorithm: ECDSA, Size: 2048} }, "spec.privateKey.size"},
		{"a size without an algorithm", func(c *Certificate) { c.Spec.PrivateKey = &CertificatePrivateKey{Size: 2048} }, "spec.privateKey.algorithm: missing"},
		{"a signature that the key cannot make", func(c *Certificate) { c.Spec.SignatureAlgorithm = "SHA256WithRSA" }, "set spec.privateKey.algorithm: RSA"},
		{"an annotation that is ours", func(c *Certificate) {
			c.Spec.SecretTemplate = &CertificateSecretTemplate{Annotations: map[string]string{"cert-manager.io/issuer-name": "x"}}
		}, "spec.secretTemplate.annotations"},
		{"a keystore", func(c *Certificate) { c.Spec.Keystores = &CertificateKeystores{} }, "spec.keystores: not supported here"},
		{"windows", func(c *Certificate) { c.Spec.Renewal = &CertificateRenewal{Windows: []RenewalWindows{{}}} }, "spec.renewal.windows: not supported here; use renewBefore"},
		{"a policy that there is not", func(c *Certificate) { c.Spec.Renewal = &CertificateRenewal{Policy: "Always"} }, "spec.renewal.policy"},
		{"all mistakes at once", func(c *Certificate) { c.Spec.SecretName, c.Spec.IssuerRef.Name = "", "" }, "spec.secretName: \"\" is no name; use lower-case letters, digits, - and .\nspec.issuerRef.name: missing"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := certificate("a")
			tt.edit(c)
			err := c.Validate()
			if tt.want == "" && err != nil || tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)) {
				t.Errorf("%v; want %q", err, tt.want)
			}
		})
	}
}
