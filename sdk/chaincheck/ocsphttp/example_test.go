package ocsphttp_test

import (
	"context"
	"fmt"
	"net/netip"

	"github.com/legation-io/legation/sdk/chaincheck"
	"github.com/legation-io/legation/sdk/chaincheck/ocsphttp"
	"github.com/legation-io/legation/sdk/egress"
)

// A verifier that asks responders on the public Internet, and in one network
// of ours.
func Example() {
	fetcher, err := ocsphttp.New(ocsphttp.Config{Egress: egress.Config{
		Allow: []netip.Prefix{netip.MustParsePrefix("10.20.0.0/16")},
	}})
	if err != nil {
		panic(err)
	}
	ocsp := chaincheck.NewOCSP(chaincheck.OCSPConfig{Fetcher: fetcher})
	defer ocsp.Close()
	verifier := chaincheck.NewVerifier(chaincheck.VerifierConfig{Usage: chaincheck.Client, OCSP: ocsp})
	fmt.Println(verifier.Stats().Remembered, "chains remembered")

	_, err = fetcher.Fetch(context.Background(), chaincheck.OCSPRequest{URL: "http://169.254.169.254/ocsp", Nonce: true})
	fmt.Println(err)
	// Output:
	// 0 chains remembered
	// Post "http://169.254.169.254/ocsp": connecting to "169.254.169.254" at 169.254.169.254 is refused: it is link-local, where metadata services are; allow the network or the host if that is meant
}
