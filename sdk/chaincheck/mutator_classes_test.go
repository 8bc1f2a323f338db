package chaincheck

import (
	"bytes"
	"crypto/x509"
	"crypto/x509/pkix"
	"regexp"
	"slices"
	"strings"
)

// class explains why we and openssl differ about a chain: ours is found in
// our refusal, theirs in openssl's, and where we accept, when holds.
type class struct {
	name         string
	why          string
	ours, theirs *regexp.Regexp
	when         func(leaf, issuing, root *x509.Certificate) bool
}

func in(s string) *regexp.Regexp { return regexp.MustCompile(s) }

// stricter: we refuse, openssl accepts. Refusing is safe, so a class here
// says only why it is meant.
var stricter = []class{
	{name: "no workload's SPIFFE ID", ours: in(`\(wrong_san\): .*(no URI name|more than one URI|is no SPIFFE ID|has no path)`), why: "openssl knows nothing of SPIFFE"},
	{name: "a CA with a workload's SPIFFE ID", ours: in(`is a CA (whose|with a) SPIFFE ID`), why: "X509-SVID 2, 3.2, 4.3"},
	{name: "another trust domain", ours: in(`\(wrong_trust_domain\)`), why: "openssl binds roots to no domain"},
	{name: "key usage of a leaf", ours: in(`has no key usage|key usage is not critical|key usage lacks digitalSignature|has keyCertSign or cRLSign`), why: "X509-SVID 4.3; RFC 5280 only recommends it to be critical"},
	{name: "purpose not stated", ours: in(`extended key usage lacks clientAuth`), why: "in a handshake the purpose must be stated; openssl takes none for all"},
	{name: "policy processing", ours: in(`demands certificate policy processing|critical extension 2\.5\.29\.32`), why: "policies are not processed here, so who demands it is refused; openssl ignores it without -policy_check"},
	{name: "name constraints of a leaf", ours: in(`has name constraints, which only CA`), why: "RFC 5280 4.2.1.10"},
	{name: "name constraints not critical", ours: in(`name constraints are not critical`), why: "RFC 5280 4.2.1.10"},
	{name: "the form of names", ours: in(`is not a valid \S+ name|subject alternative name does not parse|cannot parse (IP address|URI|dnsName|rfc822Name)|SAN (dNSName|rfc822Name|uniformResourceIdentifier) is malformed|failed to parse (URI|dns)`), why: "a name that is not what its type says could be read as another; openssl does not look"},
	{name: "the form of constraints", ours: in(`is not a valid name constraint|name constraints do not parse|IP constraint contained|x509: (failed to parse|invalid) .*constraint`), why: "as with names"},
	{name: "serial numbers", ours: in(`serial number is not a positive number|negative serial number`), why: "RFC 5280 4.1.2.2"},
	{name: "versions", ours: in(`invalid version|is X\.509 version`), why: "only version 3 has what an SVID needs"},
	{name: "weak keys", ours: in(`\(weak_key\)`), why: "112 bits of strength; openssl verify asks for less by default"},
	{name: "how dates are written", ours: in(`its validity is not written as|malformed (UTCTime|GeneralizedTime)`), why: "RFC 5280 4.1.2.5"},
	{name: "bytes after a certificate", ours: in(`trailing data`), why: "TLS carries exactly one certificate in each entry; openssl reads the PEM block to the end of the structure"},
	{name: "names in another spelling", ours: in(`\(unknown_ca\): .*no trusted or presented CA certificate signed it`), why: "issuer and subject are compared byte for byte, which RFC 5280 7.1 lets CAs rely on; openssl folds case and string types"},
	{name: "TLS features", ours: in(`TLS feature|RFC 7633`), why: "openssl does not process RFC 7633"},
	{name: "DER that crypto/x509 refuses", ours: in(`does not parse: (x509|asn1|P\d+|ed25519|crypto)`), why: "a certificate that two parsers read differently is no proof"},
	{name: "a CA without its basics", ours: in(`is a CA (without a subject key identifier|with an empty subject|whose basic constraints)|has no authority key identifier`), why: "RFC 5280 4.2.1; openssl does not ask it of the trust anchor"},
}

// laxer: we accept, openssl refuses. Each must be harmless for a reason, and
// when looks that it is that reason.
var laxer = []class{
	{
		name: "the anchor's own signature and issuer", theirs: in(`^(unable to get (local )?issuer certificate|self-signed certificate in certificate chain|certificate signature failure)`),
		why: "a trust anchor is a name and a key (RFC 5280 6.1.1 d): who signed it does not matter, since we were told to trust it",
		when: func(_, _, root *x509.Certificate) bool {
			other := len(root.AuthorityKeyId) > 0 && !bytes.Equal(root.AuthorityKeyId, root.SubjectKeyId)
			return other || namesAnIssuer(root) || !bytes.Equal(root.RawIssuer, root.RawSubject) || root.CheckSignatureFrom(root) != nil
		},
	},
	{
		name: "a leaf that has its issuer's name", theirs: in(`self-signed certificate|key usage does not include CRL signing|unable to get`),
		why: "self-issued is not self-signed: the signature is checked with the issuer's key, and only intermediates escape name constraints for it",
		when: func(leaf, issuing, _ *x509.Certificate) bool {
			return sameName(leaf.Subject.CommonName, leaf.Issuer.CommonName) && leaf.CheckSignatureFrom(issuing) == nil
		},
	},
	{
		name: "an issuer named by its issuer and serial too", theirs: in(`authority and issuer serial number mismatch|unable to get (local )?issuer certificate`),
		why: "these fields help to find the issuer (RFC 5280 4.2.1.1); path validation (6.1) goes by name and signature, and the key identifier agrees",
		when: func(leaf, issuing, root *x509.Certificate) bool {
			return namesAnIssuer(leaf) || namesAnIssuer(issuing) || namesAnIssuer(root)
		},
	},
	{
		name: "the last second", theirs: in(`^certificate has expired`),
		why: "notAfter belongs to the validity period (RFC 5280 4.1.2.5); openssl ends before it",
		when: func(leaf, issuing, root *x509.Certificate) bool {
			return slices.ContainsFunc([]*x509.Certificate{leaf, issuing, root}, func(c *x509.Certificate) bool { return c.NotAfter.Equal(now) })
		},
	},
	{
		name: "a CA for any purpose", theirs: in(`unsuitable certificate purpose`),
		why: "anyExtendedKeyUsage in a CA allows every purpose below it (RFC 5280 4.2.1.12); the leaf still states its own",
		when: func(_, issuing, root *x509.Certificate) bool {
			return slices.Contains(issuing.ExtKeyUsage, x509.ExtKeyUsageAny) || slices.Contains(root.ExtKeyUsage, x509.ExtKeyUsageAny)
		},
	},
}

// namesAnIssuer: its authority key identifier has authorityCertIssuer.
func namesAnIssuer(cert *x509.Certificate) bool {
	return slices.ContainsFunc(cert.Extensions, func(e pkix.Extension) bool { return arc(e.Id) == extAKI && bytes.Contains(e.Value, []byte("nobody")) })
}

// sameName is how openssl compares common names.
func sameName(a, b string) bool { return strings.EqualFold(strings.TrimSpace(a), strings.TrimSpace(b)) }

func explained(classes []class, m mutant, ours, theirs string) string {
	var parsed [3]*x509.Certificate
	for i, der := range [][]byte{m.leaf, m.issuing, m.root} {
		parsed[i], _ = x509.ParseCertificate(der)
	}
	for _, c := range classes {
		if c.ours != nil && !c.ours.MatchString(ours) || c.theirs != nil && !c.theirs.MatchString(theirs) {
			continue
		}
		if c.when == nil || parsed[0] != nil && parsed[1] != nil && parsed[2] != nil && c.when(parsed[0], parsed[1], parsed[2]) {
			return c.name
		}
	}
	return ""
}
