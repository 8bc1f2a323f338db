package acmecert

import (
	"crypto"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
)

const (
	maxChainBytes = 64 << 10
	maxChain      = 10
)

// checkIssued refuses a chain that is not what was asked for: another key,
// other names, not for servers, not valid now, or links that do not hold. The
// chain's root is not judged here: that is for those who connect.
func checkIssued(chainPEM []byte, key crypto.PublicKey, names []string, now time.Time) ([]*x509.Certificate, error) {
	chain, err := parseChain(chainPEM)
	if err != nil {
		return nil, err
	}
	leaf := chain[0]
	public, ok := key.(interface{ Equal(crypto.PublicKey) bool })
	if !ok || !public.Equal(leaf.PublicKey) {
		return nil, errors.New("it certifies another key than the one that was asked for")
	}
	want, got := slices.Clone(names), slices.Clone(leaf.DNSNames)
	for i := range got {
		got[i] = strings.ToLower(got[i])
	}
	slices.Sort(want)
	slices.Sort(got)
	if !slices.Equal(want, got) || len(leaf.IPAddresses)+len(leaf.URIs)+len(leaf.EmailAddresses) > 0 {
		return nil, fmt.Errorf("it names %q (and %d addresses, %d URIs, %d mailboxes) where %q was asked for",
			clean(strings.Join(got, " ")), len(leaf.IPAddresses), len(leaf.URIs), len(leaf.EmailAddresses), strings.Join(want, " "))
	}
	if leaf.IsCA {
		return nil, errors.New("it is a CA's certificate")
	}
	if !slices.Contains(leaf.ExtKeyUsage, x509.ExtKeyUsageServerAuth) {
		return nil, errors.New("it is not for TLS servers (extended key usage)")
	}
	if now.Before(leaf.NotBefore) || !now.Before(leaf.NotAfter) {
		return nil, fmt.Errorf("it is valid from %s to %s and now is %s: is this machine's clock right?", leaf.NotBefore.Format(time.RFC3339), leaf.NotAfter.Format(time.RFC3339), now.UTC().Format(time.RFC3339))
	}
	for i, c := range chain[:len(chain)-1] {
		if err := c.CheckSignatureFrom(chain[i+1]); err != nil {
			return nil, fmt.Errorf("certificate %d of the chain is not signed by the next one: %w", i+1, err)
		}
	}
	return chain, nil
}

func parseChain(chainPEM []byte) ([]*x509.Certificate, error) {
	if len(chainPEM) > maxChainBytes {
		return nil, fmt.Errorf("the chain has %d bytes, more than %d", len(chainPEM), maxChainBytes)
	}
	var chain []*x509.Certificate
	for rest := chainPEM; ; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			break
		}
		if block.Type != "CERTIFICATE" {
			return nil, fmt.Errorf("the chain has a block %q, only certificates belong there (RFC 8555 9.1)", clean(block.Type))
		}
		if len(chain) == maxChain {
			return nil, fmt.Errorf("the chain has more than %d certificates", maxChain)
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("certificate %d of the chain: %w", len(chain)+1, err)
		}
		chain = append(chain, c)
	}
	if len(chain) == 0 {
		return nil, errors.New("the chain has no certificate")
	}
	return chain, nil
}
