package light

import (
	"bytes"
	"crypto/x509"
	"errors"
	"fmt"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"

	"github.com/legation-io/legation/sdk/chaincheck"
	"github.com/legation-io/legation/sdk/internal/holder"
)

const (
	pathX509        = "/SpiffeWorkloadAPI/FetchX509SVID"
	pathRevocations = "/legation.workload.v1.Revocations/Watch"
	pathSecrets     = "/envoy.service.secret.v3.SecretDiscoveryService/StreamSecrets"
)

// maxItems bounds each kind of thing in one answer.
const maxItems = 1024

// parts is an answer as it came: slices of the message, which is wiped.
type parts struct {
	svids     []svidParts
	crls      [][]byte
	federated []bundleParts
}

type svidParts struct {
	id, hint            string
	chain, key, bundles []byte
}

type bundleParts struct {
	domain string
	roots  []byte
}

// parseX509 reads an X509SVIDResponse (SPIFFE Workload API 5.2.1,
// workload.proto).
func parseX509(message []byte) (*holder.Answer, Sizes, error) {
	sizes := Sizes{Wire: len(message)}
	p := &parts{}
	err := eachField(message, func(field int, b []byte, _ uint64) error {
		if b == nil {
			return nil
		}
		if len(p.svids)+len(p.crls)+len(p.federated) > maxItems {
			return fmt.Errorf("it has more than %d SVIDs, lists and bundles", maxItems)
		}
		switch field {
		case 1:
			s, err := parseSVIDParts(b)
			p.svids = append(p.svids, s)
			return err
		case 2:
			p.crls = append(p.crls, bytes.Clone(b))
		case 3:
			f, err := parseEntry(b)
			p.federated = append(p.federated, f)
			return err
		}
		return nil
	})
	if err != nil {
		return nil, sizes, fmt.Errorf("the answer cannot be read: %w", err)
	}
	answer, err := p.answer(&sizes)
	return answer, sizes, err
}

func parseSVIDParts(message []byte) (svidParts, error) {
	var s svidParts
	err := eachField(message, func(field int, b []byte, _ uint64) (err error) {
		if b == nil {
			return nil
		}
		switch field {
		case 1:
			s.id, err = text(b)
		case 2:
			s.chain = b
		case 3:
			s.key = b
		case 4:
			s.bundles = b
		case 5:
			s.hint, err = text(b)
		}
		return err
	})
	return s, err
}

// parseEntry reads one element of a map<string, bytes>.
func parseEntry(message []byte) (bundleParts, error) {
	var e bundleParts
	err := eachField(message, func(field int, b []byte, _ uint64) (err error) {
		switch {
		case field == 1 && b != nil:
			e.domain, err = text(b)
		case field == 2 && b != nil:
			e.roots = b
		}
		return err
	})
	return e, err
}

// answer parses what the parts are. Nothing in it aliases the message.
func (p *parts) answer(sizes *Sizes) (*holder.Answer, error) {
	if len(p.svids) == 0 {
		return nil, errors.New("the answer has no SVID")
	}
	a := &holder.Answer{Roots: chaincheck.Roots{}, CRLs: p.crls}
	for _, crl := range p.crls {
		sizes.add("X509 CRL", crl)
	}
	for n, item := range p.svids {
		svid, err := x509svid.ParseRaw(bytes.Clone(item.chain), item.key)
		if err != nil {
			return nil, fmt.Errorf("SVID %d of the answer: %w", n, err)
		}
		if svid.ID.String() != item.id {
			return nil, fmt.Errorf("SVID %d of the answer is announced as %.300q and names %s", n, item.id, svid.ID)
		}
		svid.Hint = item.hint
		a.SVIDs = append(a.SVIDs, svid)
		roots, err := parseRoots(item.bundles)
		if err != nil {
			return nil, fmt.Errorf("bundle of SVID %d of the answer: %w", n, err)
		}
		a.Roots[svid.ID.TrustDomain()] = roots
		for _, c := range svid.Certificates {
			sizes.add("CERTIFICATE", c.Raw)
		}
		sizes.add("PRIVATE KEY", item.key)
		for _, c := range roots {
			sizes.add("CERTIFICATE", c.Raw)
		}
	}
	for _, f := range p.federated {
		domain, err := spiffeid.TrustDomainFromString(f.domain)
		if err != nil {
			return nil, fmt.Errorf("federated bundle %.300q: %w", f.domain, err)
		}
		// A domain's own bundle comes with its SVIDs alone.
		if _, own := a.Roots[domain]; own {
			return nil, fmt.Errorf("the federated bundle of %s would replace the one that is there", domain)
		}
		roots, err := parseRoots(f.roots)
		if err != nil {
			return nil, fmt.Errorf("federated bundle of %s: %w", domain, err)
		}
		a.Roots[domain] = roots
		for _, c := range roots {
			sizes.add("CERTIFICATE", c.Raw)
		}
	}
	return a, nil
}

func parseRoots(der []byte) ([]*x509.Certificate, error) {
	return x509.ParseCertificates(bytes.Clone(der))
}

// parseRevocations reads a legation.workload.v1.RevocationSet.
func parseRevocations(message []byte) ([]holder.Revocation, error) {
	var all []holder.Revocation
	err := eachField(message, func(field int, b []byte, _ uint64) error {
		if field != 1 || b == nil {
			return nil
		}
		r := holder.Revocation{}
		err := eachField(b, func(field int, b []byte, number uint64) (err error) {
			var s string
			if b != nil {
				if s, err = text(b); err != nil {
					return err
				}
			}
			switch field {
			case 1:
				r.SPIFFEID = s
			case 2:
				r.Serials = append(r.Serials, s)
			case 3:
				r.Reason = s
			case 4:
				r.At = time.Unix(0, int64(number))
			}
			return nil
		})
		all = append(all, r)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("the set of revocations cannot be read: %w", err)
	}
	return all, nil
}

// Sizes says what an answer weighs, in bytes.
type Sizes struct {
	// Wire is the message as it came: DER with names from the Workload API,
	// PEM from SDS.
	Wire int
	// DER and PEM are what keys, certificates and lists of the answer weigh
	// in either form.
	DER, PEM int
}

// add counts one thing as both forms have it, RFC 7468 2: lines of 64.
func (s *Sizes) add(label string, der []byte) {
	encoded := (len(der) + 2) / 3 * 4
	s.DER += len(der)
	s.PEM += encoded + (encoded+63)/64 + len("-----BEGIN -----\n-----END -----\n") + 2*len(label)
}
