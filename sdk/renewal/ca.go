package renewal

import (
	"cmp"
	"context"
	"crypto"
	"crypto/rand"
	"crypto/x509"
	"fmt"
	"math/big"
	"sync"
	"time"
)

// CA is an Issuer that signs with a key of its own, like cert-manager's CA
// issuer: what the CSR asks for is granted. It remembers what it signed for
// the last requests, so that a request that is repeated gets the same
// certificate while the process lives.
type CA struct {
	// Certificate and Key are the CA's. Root, when set, is what Certificate
	// leads to; it becomes ca.crt.
	Certificate *x509.Certificate
	Key         crypto.Signer
	Root        *x509.Certificate
	// Duration of certificates whose spec asks for none; 0 is 90 days. None
	// outlives the CA.
	Duration time.Duration
	// Backdate is how far notBefore lies back, for clocks that are behind.
	Backdate time.Duration
	// Now reads the wall clock; nil is time.Now.
	Now func() time.Time

	mu     sync.Mutex
	issued map[string]*Issued
	order  []string // of issued, oldest first
}

const remembered = 1024

// Issue implements Issuer.
func (ca *CA) Issue(_ context.Context, r *Request) (*Issued, error) {
	csr, err := x509.ParseCertificateRequest(r.CSR)
	if err == nil {
		err = csr.CheckSignature()
	}
	if err != nil {
		return nil, Permanent("the request cannot be signed: %w", err)
	}
	now := time.Now
	if ca.Now != nil {
		now = ca.Now
	}
	begin := now().Truncate(time.Second)
	end := begin.Add(cmp.Or(r.Duration, ca.Duration, DefaultDuration))
	if end.After(ca.Certificate.NotAfter) {
		end = ca.Certificate.NotAfter
	}
	if !end.After(begin) {
		return nil, fmt.Errorf("the CA %s ended at %s; give it a new certificate", ca.Certificate.Subject, ca.Certificate.NotAfter.UTC().Format(time.RFC3339))
	}
	if begin = begin.Add(-ca.Backdate); begin.Before(ca.Certificate.NotBefore) {
		begin = ca.Certificate.NotBefore
	}
	var serial [16]byte
	rand.Read(serial[:])
	serial[0] = serial[0]&0x3f | 0x40 // positive, and always as long: RFC 5280 4.1.2.2
	template := &x509.Certificate{
		SerialNumber: new(big.Int).SetBytes(serial[:]), Subject: csr.Subject, NotBefore: begin, NotAfter: end,
		DNSNames: csr.DNSNames, IPAddresses: csr.IPAddresses, URIs: csr.URIs, EmailAddresses: csr.EmailAddresses,
		BasicConstraintsValid: true, IsCA: r.IsCA,
	}
	for _, u := range r.Usages {
		template.KeyUsage |= keyUsages[u]
		if e, ok := extKeyUsages[u]; ok {
			template.ExtKeyUsage = append(template.ExtKeyUsage, e.usage)
		}
	}
	der, err := x509.CreateCertificate(rand.Reader, template, ca.Certificate, csr.PublicKey, ca.Key)
	if err != nil {
		return nil, fmt.Errorf("sign with the CA %s: %w", ca.Certificate.Subject, err)
	}
	out := &Issued{Chain: [][]byte{der}}
	root := ca.Root
	if string(ca.Certificate.RawSubject) == string(ca.Certificate.RawIssuer) {
		root = ca.Certificate // it is the root itself
	} else {
		out.Chain = append(out.Chain, ca.Certificate.Raw)
	}
	if root != nil {
		out.CA = root.Raw
	}
	ca.remember(r.ID, out)
	return out, nil
}

func (ca *CA) remember(id string, out *Issued) {
	ca.mu.Lock()
	defer ca.mu.Unlock()
	if ca.issued == nil {
		ca.issued = make(map[string]*Issued)
	}
	ca.issued[id] = out
	if ca.order = append(ca.order, id); len(ca.order) > remembered {
		delete(ca.issued, ca.order[0])
		ca.order = ca.order[1:]
	}
}

// Find implements Finder.
func (ca *CA) Find(_ context.Context, r *Request) (*Issued, error) {
	ca.mu.Lock()
	defer ca.mu.Unlock()
	if out := ca.issued[r.ID]; out != nil {
		return out, nil
	}
	return nil, ErrNotIssued
}

var (
	_ Finder = (*CA)(nil)
	_ Store  = (*Memory)(nil)
)
