package renewal

import (
	"crypto/x509"
	"fmt"
)

// pair is what a Secret holds.
type pair struct {
	leaf   *x509.Certificate
	reason string // why a new certificate is needed, or ""
	text   string
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
