package renewal

import (
	"cmp"
	"context"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"maps"
	"strconv"
	"time"
)

// signed is a chain that fits the request.
type signed struct {
	leaf      *x509.Certificate
	chain, ca []byte // PEM
}

// check refuses what would have to be replaced at once.
func (s *Scheduler) check(issued *Issued, a *attempt) (*signed, error) {
	ref := a.c.Spec.IssuerRef
	if issued == nil || len(issued.Chain) == 0 {
		return nil, fmt.Errorf("issuer %s returned no certificate", ref)
	}
	chain := make([]*x509.Certificate, len(issued.Chain))
	for i, der := range issued.Chain {
		c, err := x509.ParseCertificate(der)
		if err != nil {
			return nil, fmt.Errorf("issuer %s returned a certificate that cannot be read: %w", ref, err)
		}
		if chain[i] = c; i == 0 {
			continue
		}
		if err := chain[i-1].CheckSignatureFrom(c); err != nil {
			return nil, fmt.Errorf("issuer %s returned a chain whose certificate %d is not signed by the next: %w", ref, i, err)
		}
	}
	leaf, now := chain[0], s.cfg.Now()
	switch {
	case !samePublic(leaf.PublicKey, a.key.Public()):
		return nil, fmt.Errorf("issuer %s returned a certificate for another key than the request's", ref)
	case !leaf.NotAfter.After(now):
		return nil, fmt.Errorf("issuer %s returned a certificate that ended at %s; its CA may have ended, or a clock is wrong", ref, leaf.NotAfter.UTC().Format(time.RFC3339))
	case leaf.NotBefore.Sub(now) > 24*time.Hour:
		return nil, fmt.Errorf("issuer %s returned a certificate that is valid only from %s; a clock is wrong", ref, leaf.NotBefore.UTC().Format(time.RFC3339))
	}
	out := &signed{leaf: leaf}
	if last := chain[len(chain)-1]; len(chain) > 1 && last.CheckSignatureFrom(last) == nil {
		issued = &Issued{Chain: issued.Chain[:len(chain)-1], CA: last.Raw}
	}
	out.chain = pemOf("CERTIFICATE", issued.Chain...)
	if len(issued.CA) > 0 {
		if _, err := x509.ParseCertificate(issued.CA); err != nil {
			return nil, fmt.Errorf("issuer %s returned a root that cannot be read: %w", ref, err)
		}
		out.ca = pemOf("CERTIFICATE", issued.CA)
	}
	return out, nil
}

// keep stores key and certificate as one.
func (s *Scheduler) keep(ctx context.Context, a *attempt, got *signed) error {
	k, ref := a.c.Key(), a.c.Spec.IssuerRef
	out := &Secret{Namespace: k.Namespace, Name: a.c.Spec.SecretName}
	if a.current != nil {
		out = a.current.Clone() // what others put there stays
	}
	if out.Annotations == nil {
		out.Annotations = make(map[string]string)
	}
	if out.Data == nil {
		out.Data = make(map[string][]byte)
	}
	if t := a.c.Spec.SecretTemplate; t != nil {
		maps.Copy(out.Annotations, t.Annotations)
		if out.Labels == nil {
			out.Labels = make(map[string]string)
		}
		maps.Copy(out.Labels, t.Labels)
	}
	maps.Copy(out.Annotations, map[string]string{
		annotationCertificate: k.Name, annotationIssuerName: ref.Name, annotationIssuerKind: cmp.Or(ref.Kind, "Issuer"),
		annotationIssuerGroup: cmp.Or(ref.Group, "cert-manager.io"), annotationHash: a.c.Spec.requestHash(),
		annotationRequest: a.next.Annotations[annotationRequest], annotationRevision: strconv.Itoa(a.revision()), annotationIssued: s.cfg.Now().UTC().Format(time.RFC3339),
	})
	keyPEM := a.next.Data[TLSKey]
	out.Data[TLSKey], out.Data[TLSCert] = keyPEM, got.chain
	delete(out.Data, CACert)
	if got.ca != nil {
		out.Data[CACert] = got.ca
	}
	for _, f := range a.c.Spec.AdditionalOutputFormats {
		switch f.Type {
		case "CombinedPEM":
			out.Data["tls-combined.pem"] = append(append([]byte{}, keyPEM...), got.chain...)
		case "DER":
			if block, _ := pem.Decode(keyPEM); block != nil {
				out.Data["key.der"] = block.Bytes
			}
		}
	}
	if err := s.cfg.Store.PutSecret(ctx, out); err != nil {
		return fmt.Errorf("store the new certificate of %s: %w", k, err)
	}
	a.current = out
	return nil
}
