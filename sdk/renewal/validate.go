package renewal

import (
	"crypto/x509"
	"errors"
	"fmt"
	"net/mail"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"time"
)

// What cert-manager demands of a spec, and what it assumes.
const (
	MinDuration     = time.Hour
	MinRenewBefore  = 5 * time.Minute
	DefaultDuration = 90 * 24 * time.Hour // of a certificate whose spec asks for none, for judging RenewBefore
)

// NextPrivateKeySuffix ends the name of the Secret that holds what is to become
// the next key of the certificate before it, and the request for it. It is
// there while an issuance runs or is to be tried again.
const NextPrivateKeySuffix = ".next-private-key"

// Validate returns everything that is wrong with metadata and spec, each with
// the field and what to write instead.
func (c *Certificate) Validate() error {
	var errs []error
	bad := func(field, format string, args ...any) {
		errs = append(errs, fmt.Errorf("%s: %s", field, fmt.Sprintf(format, args...)))
	}
	key, s := c.Key(), &c.Spec
	if most := maxSubdomain - len(NextPrivateKeySuffix); len(key.Name) > most {
		bad("metadata.name", "%d characters are over the limit of %d, with which its keys to come can be kept", len(key.Name), most)
	} else if !isSubdomain(key.Name) {
		bad("metadata.name", "%q is no name; use lower-case letters, digits, - and .", key.Name)
	}
	if !isLabel(key.Namespace) {
		bad("metadata.namespace", "%q is no name; use lower-case letters, digits and -", key.Namespace)
	}
	switch {
	case !isSubdomain(s.SecretName):
		bad("spec.secretName", "%q is no name; use lower-case letters, digits, - and .", s.SecretName)
	case strings.HasSuffix(s.SecretName, NextPrivateKeySuffix):
		bad("spec.secretName", "names ending in %s are used for keys to come; choose another", NextPrivateKeySuffix)
	}
	if s.IssuerRef.Name == "" {
		bad("spec.issuerRef.name", "missing; name the issuer")
	}
	if g := s.IssuerRef.Group; (g == "" || g == "cert-manager.io") && !slices.Contains([]string{"", "Issuer", "ClusterIssuer"}, s.IssuerRef.Kind) {
		bad("spec.issuerRef.kind", "%q is not Issuer or ClusterIssuer; a kind of another group needs issuerRef.group", s.IssuerRef.Kind)
	}
	s.validateNames(bad)
	s.validateTimes(bad)
	s.validateKey(bad)
	for i, u := range s.Usages {
		if _, ok := keyUsages[u]; !ok {
			if _, ok := extKeyUsages[u]; !ok {
				bad(fmt.Sprintf("spec.usages[%d]", i), "%q is no key usage; for example: digital signature, server auth, client auth", u)
			}
		}
	}
	for i, f := range s.AdditionalOutputFormats {
		if f.Type != "CombinedPEM" && f.Type != "DER" {
			bad(fmt.Sprintf("spec.additionalOutputFormats[%d].type", i), "%q is not CombinedPEM or DER", f.Type)
		}
	}
	if n := s.RevisionHistoryLimit; n != nil && *n < 1 {
		bad("spec.revisionHistoryLimit", "%d is below 1; leave it out", *n)
	}
	if t := s.SecretTemplate; t != nil {
		for a := range t.Annotations {
			if strings.HasPrefix(a, "cert-manager.io/") && a != "cert-manager.io/allow-direct-injection" || strings.HasPrefix(a, annotationPrefix) {
				bad("spec.secretTemplate.annotations", "%s is set by whoever keeps the Secret; choose another name", a)
			}
		}
	}
	for _, x := range []struct {
		set   bool
		field string
		text  string
	}{
		{s.LiteralSubject != "", "literalSubject", "use commonName and subject"},
		{len(s.OtherNames) > 0, "otherNames", "use dnsNames, uris, ipAddresses or emailAddresses"},
		{s.Keystores != nil, "keystores", "make the keystore from the Secret's tls.key and tls.crt"},
		{s.NameConstraints != nil, "nameConstraints", "let the issuer set them"},
		{s.Renewal != nil && len(s.Renewal.Windows) > 0, "renewal.windows", "use renewBefore"},
	} {
		if x.set {
			bad("spec."+x.field, "not supported here; %s", x.text)
		}
	}
	return errors.Join(errs...)
}

func (s *CertificateSpec) validateNames(bad func(field, format string, args ...any)) {
	if s.CommonName == "" && len(s.DNSNames)+len(s.URIs)+len(s.IPAddresses)+len(s.EmailAddresses)+len(s.OtherNames) == 0 && s.LiteralSubject == "" {
		bad("spec", "no name at all; give one of commonName, dnsNames, uris, ipAddresses, emailAddresses")
	}
	if len(s.CommonName) > 64 { // ub-common-name, RFC 5280 appendix A.1
		bad("spec.commonName", "%d characters are over the limit of 64; use dnsNames", len(s.CommonName))
	}
	for i, name := range s.DNSNames {
		if !isDNSName(name) {
			bad(fmt.Sprintf("spec.dnsNames[%d]", i), "%q is no DNS name", name)
		}
	}
	for i, ip := range s.IPAddresses {
		if a, err := netip.ParseAddr(ip); err != nil || a.Zone() != "" {
			bad(fmt.Sprintf("spec.ipAddresses[%d]", i), "%q is no IP address", ip)
		}
	}
	for i, u := range s.URIs {
		if p, err := url.Parse(u); err != nil || p.Scheme == "" || !isASCII(u) {
			bad(fmt.Sprintf("spec.uris[%d]", i), "%q is no URI with a scheme", u)
		}
	}
	for i, m := range s.EmailAddresses {
		if p, err := mail.ParseAddress(m); err != nil || p.Address != m || !isASCII(m) {
			bad(fmt.Sprintf("spec.emailAddresses[%d]", i), "%q is no mail address", m)
		}
	}
}

func (s *CertificateSpec) validateTimes(bad func(field, format string, args ...any)) {
	duration, said := DefaultDuration, fmt.Sprintf("the duration that issuers use when spec.duration is not set, %s", inDays(DefaultDuration))
	if s.Duration != nil {
		duration, said = s.Duration.Duration, "spec.duration, "+inDays(s.Duration.Duration)
		if duration < MinDuration {
			bad("spec.duration", "%s is below the least, %s", duration, MinDuration)
		}
	}
	switch b, p := s.RenewBefore, s.RenewBeforePercentage; {
	case b != nil && p != nil:
		bad("spec.renewBefore", "given together with renewBeforePercentage; remove one of them")
	case b != nil && b.Duration < MinRenewBefore:
		bad("spec.renewBefore", "%s is below the least, %s", b.Duration, MinRenewBefore)
	case b != nil && b.Duration >= duration:
		bad("spec.renewBefore", "%s is not below %s: it would be renewed for ever; leave it out for a third of the lifetime (%s), or ask for a longer spec.duration", inDays(b.Duration), said, inDays(duration/3))
	case p != nil && (*p < 1 || *p > 99):
		bad("spec.renewBeforePercentage", "%d is not within 1 to 99: it would be renewed for ever or too late; leave it out for a third of the lifetime", *p)
	case p != nil && percent(duration, *p) < MinRenewBefore:
		bad("spec.renewBeforePercentage", "%d %% of %s is %s, below the least, %s", *p, said, percent(duration, *p), MinRenewBefore)
	}
	if r := s.Renewal; r != nil && r.Policy != "" && r.Policy != RenewBefore && r.Policy != Disabled {
		bad("spec.renewal.policy", "%q is not %s or %s", r.Policy, RenewBefore, Disabled)
	}
}

func (s *CertificateSpec) validateKey(bad func(field, format string, args ...any)) {
	k := CertificatePrivateKey{}
	if s.PrivateKey != nil {
		k = *s.PrivateKey
	}
	if k.RotationPolicy != "" && k.RotationPolicy != RotateAlways && k.RotationPolicy != RotateNever {
		bad("spec.privateKey.rotationPolicy", "%q is not %s or %s", k.RotationPolicy, RotateAlways, RotateNever)
	}
	if k.Encoding != "" && k.Encoding != PKCS1 && k.Encoding != PKCS8 {
		bad("spec.privateKey.encoding", "%q is not %s or %s", k.Encoding, PKCS1, PKCS8)
	}
	switch k.Algorithm {
	case "":
		if k.Size != 0 {
			bad("spec.privateKey.algorithm", "missing although size is %d; write RSA or ECDSA", k.Size)
		}
	case RSA:
		if k.Size != 0 && (k.Size < 2048 || k.Size > 8192) {
			bad("spec.privateKey.size", "%d is not within 2048 to 8192 for RSA", k.Size)
		}
	case ECDSA:
		if k.Size != 0 && k.Size != 256 && k.Size != 384 && k.Size != 521 {
			bad("spec.privateKey.size", "%d is not 256, 384 or 521 for ECDSA", k.Size)
		}
	case Ed25519:
	default:
		bad("spec.privateKey.algorithm", "%q is not RSA, ECDSA or Ed25519", k.Algorithm)
	}
	if s.SignatureAlgorithm == "" {
		return
	}
	if a, ok := signatureAlgorithms[s.SignatureAlgorithm]; !ok {
		bad("spec.signatureAlgorithm", "%q is none of SHA256WithRSA, SHA384WithRSA, SHA512WithRSA, ECDSAWithSHA256, ECDSAWithSHA384, ECDSAWithSHA512, PureEd25519", s.SignatureAlgorithm)
	} else if k.Algorithm != a.key {
		bad("spec.signatureAlgorithm", "%s signs with %s keys; set spec.privateKey.algorithm: %s", s.SignatureAlgorithm, a.key, a.key)
	}
}

var signatureAlgorithms = map[SignatureAlgorithm]struct {
	key KeyAlgorithm
	x   x509.SignatureAlgorithm
}{
	"SHA256WithRSA": {RSA, x509.SHA256WithRSA}, "SHA384WithRSA": {RSA, x509.SHA384WithRSA}, "SHA512WithRSA": {RSA, x509.SHA512WithRSA},
	"ECDSAWithSHA256": {ECDSA, x509.ECDSAWithSHA256}, "ECDSAWithSHA384": {ECDSA, x509.ECDSAWithSHA384}, "ECDSAWithSHA512": {ECDSA, x509.ECDSAWithSHA512},
	"PureEd25519": {Ed25519, x509.PureEd25519},
}

// percent of a duration, without overflow.
func percent(d time.Duration, p int32) time.Duration {
	return d/100*time.Duration(p) + d%100*time.Duration(p)/100
}

// inDays is a duration as people write it here.
func inDays(d time.Duration) string {
	if d >= 48*time.Hour && d%(24*time.Hour) == 0 {
		return fmt.Sprintf("%dh (%d days)", d/time.Hour, d/(24*time.Hour))
	}
	return d.String()
}

// isLabel and isSubdomain are RFC 1123's, as Kubernetes names objects.
func isLabel(s string) bool {
	if s == "" || len(s) > 63 || s[0] == '-' || s[len(s)-1] == '-' {
		return false
	}
	return strings.IndexFunc(s, func(r rune) bool { return (r < 'a' || r > 'z') && (r < '0' || r > '9') && r != '-' }) < 0
}

const maxSubdomain = 253

func isSubdomain(s string) bool {
	if s == "" || len(s) > maxSubdomain {
		return false
	}
	return !slices.ContainsFunc(strings.Split(s, "."), func(l string) bool { return !isLabel(l) })
}

func isASCII(s string) bool {
	return strings.IndexFunc(s, func(r rune) bool { return r <= ' ' || r > '~' }) < 0
}

// isDNSName allows a wildcard as the whole first label, and underscores.
func isDNSName(s string) bool {
	s = strings.TrimPrefix(s, "*.")
	return isSubdomain(strings.ReplaceAll(strings.ToLower(s), "_", "x"))
}
