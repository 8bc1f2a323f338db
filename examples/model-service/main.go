// Command model-service is a model server whose every caller is known: mutual
// TLS with the identity of the SPIFFE Workload API at one port, public HTTPS
// with a certificate by ACME at another, Open Policy Agent to say who may ask
// which model, and the chain of callers behind each request.
package main

import (
	"context"
	"crypto/x509"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"os"
	"time"

	"github.com/legation-io/legation/sdk/acmecert"
	"github.com/legation-io/legation/sdk/chaincheck"
)

type config struct {
	listen, publicListen, metrics, policies string
	domain, email, directory                string
	acmeFolder, acmeKey                     string
	directoryRoots                          *x509.CertPool
	terms                                   bool
	revocation                              chaincheck.Policy
	wait, drain                             time.Duration
}

func main() {
	c, err := configure(os.Args[1:])
	switch {
	case errors.Is(err, flag.ErrHelp):
		return
	case err != nil:
		fmt.Fprintln(os.Stderr, "model-service:", err)
		os.Exit(2)
	}
	if err := run(context.Background(), c, slog.New(slog.NewTextHandler(os.Stderr, nil))); err != nil {
		fmt.Fprintln(os.Stderr, "model-service:", err)
		os.Exit(1)
	}
}

// configure reads the flags. The identity's socket is SPIFFE_ENDPOINT_SOCKET.
func configure(args []string) (config, error) {
	var c config
	flags := flag.NewFlagSet("model-service", flag.ContinueOnError)
	flags.StringVar(&c.listen, "listen", "127.0.0.1:8443", "address of the mTLS port")
	flags.StringVar(&c.publicListen, "public-listen", ":443", "address of the public HTTPS port; used with -domain")
	flags.StringVar(&c.metrics, "metrics", "127.0.0.1:9443", "address of Prometheus metrics in plaintext; empty for none")
	flags.StringVar(&c.policies, "policies", "policies", "folder with the Rego policy; changes are noticed")
	flags.StringVar(&c.domain, "domain", "", "public name; a certificate for it is ordered by ACME")
	flags.StringVar(&c.email, "email", "", "told to the ACME CA")
	flags.StringVar(&c.directory, "acme-directory", acmecert.LetsEncryptStaging, "the ACME CA; https")
	roots := flags.String("acme-ca", "", "PEM file with the roots of the directory's own certificate, for a private CA")
	flags.BoolVar(&c.terms, "acme-terms", false, "the CA's terms of service are agreed to")
	flags.StringVar(&c.acmeFolder, "acme-folder", "acme", "folder for the account and the certificates, sealed")
	flags.StringVar(&c.acmeKey, "acme-key", "acme.key", "file with the 32 bytes that seal the folder: head -c 32 /dev/urandom")
	revocation := flags.String("revocation", "require", "require, or prefer for trust domains that publish no revocation lists")
	flags.DurationVar(&c.wait, "wait", 30*time.Second, "how long to wait for an identity at the start")
	flags.DurationVar(&c.drain, "drain", 10*time.Second, "how long requests under way may take after SIGTERM")
	if err := flags.Parse(args); err != nil {
		return c, err
	}
	if flags.NArg() > 0 {
		return c, fmt.Errorf("%q is no flag; -help lists them", flags.Arg(0))
	}
	switch *revocation {
	case "require":
		c.revocation = chaincheck.Require
	case "prefer":
		c.revocation = chaincheck.Prefer
	default:
		return c, fmt.Errorf("-revocation is %q, it must be require or prefer", *revocation)
	}
	if *roots != "" {
		pem, err := os.ReadFile(*roots)
		if err != nil {
			return c, fmt.Errorf("-acme-ca: %w", err)
		}
		if c.directoryRoots = x509.NewCertPool(); !c.directoryRoots.AppendCertsFromPEM(pem) {
			return c, fmt.Errorf("-acme-ca: %s holds no certificate in PEM", *roots)
		}
	}
	return c, nil
}
