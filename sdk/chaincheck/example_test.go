package chaincheck_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"math/big"
	"net/url"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/legation-io/legation/sdk/chaincheck"
)

// A program receives roots and chains from elsewhere; issue makes some.
func issue(template, parent *x509.Certificate, signer *ecdsa.PrivateKey) (*x509.Certificate, *ecdsa.PrivateKey) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		panic(err)
	}
	if parent == nil {
		parent, signer = template, key
	}
	template.NotBefore, template.NotAfter = time.Now().Add(-time.Minute), time.Now().Add(time.Hour)
	der, err := x509.CreateCertificate(rand.Reader, template, parent, key.Public(), signer)
	if err != nil {
		panic(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		panic(err)
	}
	return cert, key
}

func exampleChain() (trust chaincheck.Roots, root *x509.Certificate, chain []*x509.Certificate) {
	root, key := issue(&x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "root"}, BasicConstraintsValid: true, IsCA: true, KeyUsage: x509.KeyUsageCertSign,
	}, nil, nil)
	leaf, _ := issue(&x509.Certificate{
		SerialNumber: big.NewInt(0xabc), Subject: pkix.Name{CommonName: "web"}, KeyUsage: x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		URIs:        []*url.URL{{Scheme: "spiffe", Host: "example.org", Path: "/ns/retail/sa/web"}}, DNSNames: []string{"web.example.org"},
	}, root, key)
	return chaincheck.Roots{spiffeid.RequireTrustDomainFromString("example.org"): {root}}, root, []*x509.Certificate{leaf}
}

// A Verifier in a server's VerifyConnection: it remembers who was accepted
// until anything that rests on ends.
func ExampleVerifier() {
	roots, _, chain := exampleChain()
	verifier := chaincheck.NewVerifier(chaincheck.VerifierConfig{
		Usage:      chaincheck.Client,
		Revocation: chaincheck.Prefer,
	})
	trust := &chaincheck.Trust{Roots: roots} // replaced whole when anything changes
	for range 2 {
		result, err := verifier.Verify(context.Background(), trust, chain, nil)
		if err != nil {
			panic(err)
		}
		fmt.Println(result.ID)
	}
	fmt.Println(verifier.Stats().Hits, "remembered")
	// Output:
	// spiffe://example.org/ns/retail/sa/web
	// spiffe://example.org/ns/retail/sa/web
	// 1 remembered
}

// Every refusal is data: the cause to switch on, the certificate at fault, and
// the roots that were tried.
func ExampleError() {
	roots, _, chain := exampleChain()
	_, err := chaincheck.Verify(chaincheck.Params{Chain: chain, Roots: roots, Usage: chaincheck.Client})
	var refusal *chaincheck.Error
	if errors.As(err, &refusal) {
		fmt.Println(refusal.Cause)
		fmt.Println(refusal.Subject)
		fmt.Println(refusal.Explain().Anchors)
	}
	fmt.Println(errors.Is(err, &chaincheck.Error{Cause: chaincheck.RevocationUnknown}))
	// Output:
	// revocation_unknown
	// "spiffe://example.org/ns/retail/sa/web" (serial abc)
	// ["CN=root" (serial 1)]
	// true
}

// What is denied is refused at once, under every policy.
func ExampleDenySet() {
	roots, _, chain := exampleChain()
	denied, err := chaincheck.NewDenySet([]chaincheck.Denial{{Serial: "0A:BC", Reason: "the disk was stolen"}})
	if err != nil {
		panic(err) // something here denies nothing
	}
	_, err = chaincheck.Verify(chaincheck.Params{Chain: chain, Roots: roots, Usage: chaincheck.Client, Revocation: chaincheck.Off, Denied: denied})
	fmt.Println(err)
	// Output: chain refused (revoked): "spiffe://example.org/ns/retail/sa/web" (serial abc): serial abc was taken back: the disk was stolen
}

// A server that presents a certificate by name, e.g. from an ACME CA.
func ExampleVerifyServerName() {
	_, root, chain := exampleChain()
	p := chaincheck.Params{Chain: chain, Usage: chaincheck.Server, Revocation: chaincheck.Prefer}
	result, err := chaincheck.VerifyServerName(p, []*x509.Certificate{root}, "web.example.org")
	if err != nil {
		panic(err)
	}
	fmt.Println(result.Host)
	_, err = chaincheck.VerifyServerName(p, []*x509.Certificate{root}, "mail.example.org")
	fmt.Println(errors.Is(err, &chaincheck.Error{Cause: chaincheck.WrongSAN}))
	// Output:
	// web.example.org
	// true
}
