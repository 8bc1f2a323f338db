// Package lint holds what the authority signs against zlint, whose weight
// stays out of the root module.
package lint

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"fmt"
	"net/netip"
	"path/filepath"
	"testing"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	zx509 "github.com/zmap/zcrypto/x509"
	"github.com/zmap/zlint/v3"
	"github.com/zmap/zlint/v3/lint"

	"github.com/legation-io/legation/internal/ca"
	"github.com/legation-io/legation/internal/ca/custody/file"
	"github.com/legation-io/legation/internal/durable"
	"github.com/legation-io/legation/internal/ledger"
	"github.com/legation-io/legation/internal/store/memory"
)

func newAuthority(t *testing.T, td spiffeid.TrustDomain) *ca.Authority {
	t.Helper()
	ctx := context.Background()
	s := memory.New()
	kek, err := file.OpenKEK(durable.OS, filepath.Join(t.TempDir(), "kek"), true)
	if err != nil {
		t.Fatal(err)
	}
	keys, err := file.New(file.Params{Store: s, TrustDomain: td.Name(), KEK: kek})
	if err != nil {
		t.Fatal(err)
	}
	journal, err := ledger.Open(ctx, ledger.Params{Store: s, TrustDomain: td.Name()})
	if err != nil {
		t.Fatal(err)
	}
	a, err := ca.Open(ctx, ca.Params{Store: s, Custody: keys, Journal: journal, TrustDomain: td})
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// webPKI are rules of the CA/Browser Forum for certificates that browsers
// accept; each contradicts SPIFFE, or a CA that no browser knows. Every other
// rule of zlint holds, those of the CA/Browser Forum included.
var webPKI = map[string]string{
	"e_ext_san_uniform_resource_identifier_present": "SPIFFE X509-SVID 2: the identity is a URI name",
	"e_sub_cert_country_name_must_appear":           "the subject of an SVID means nothing",
	"e_sub_cert_province_must_appear":               "the subject of an SVID means nothing",
	"e_sub_cert_locality_name_must_appear":          "the subject of an SVID means nothing",
	"e_ca_country_name_missing":                     "a trust domain has no country",
	"e_sub_cert_certificate_policies_missing":       "there are no audited policies to name",
	"e_sub_cert_cert_policy_empty":                  "there are no audited policies to name",
	"e_sub_ca_certificate_policies_missing":         "there are no audited policies to name",
	"e_invalid_ca_certificate_policies":             "there are no audited policies to name",
	"e_sub_cert_aia_missing":                        "CRLs are pushed, chains are sent whole",
	"e_sub_ca_crl_distribution_points_missing":      "CRLs are pushed",
	"e_crl_next_update_invalid":                     "an Envoy with an expired CRL refuses everyone",
	"e_ext_san_contains_reserved_ip":                "workloads live on private addresses",
	"e_dnsname_not_valid_tld":                       "workloads have internal names",
	"e_dnsname_contains_bare_iana_suffix":           "workloads have internal names",
}

func TestZlintFindsNothingInAnyProfile(t *testing.T) {
	rules, err := lint.GlobalRegistry().Filter(lint.FilterOptions{})
	if err != nil {
		t.Fatal(err)
	}
	td := spiffeid.RequireTrustDomainFromString("example.org")
	a := newAuthority(t, td)
	issuing, root := a.Chain()
	check(t, rules, "root", root.Raw)
	check(t, rules, "issuing CA", issuing.Raw)

	ec256, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	ec384, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	rsa2048, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	for profile, path := range map[ca.Profile]string{
		ca.ProfileWorkload: "/ns/default/sa/web", ca.ProfileAgent: "/legation/agent/node-1",
		ca.ProfileServer: "/legation/server", ca.ProfileOperator: "/people/alice",
	} {
		for _, key := range []crypto.Signer{ec256, ec384, rsa2048} {
			for _, names := range []bool{false, true} {
				csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
				if err != nil {
					t.Fatal(err)
				}
				req := ca.X509Request{Profile: profile, ID: spiffeid.RequireFromPath(td, path), CSR: csr, Node: "node-1"}
				if names {
					req.DNSNames = []string{"web.default.svc.cluster.local", "web"}
					req.IPs = []netip.Addr{netip.MustParseAddr("10.0.0.7"), netip.MustParseAddr("fd00::7")}
				}
				result := a.SignX509(context.Background(), []ca.X509Request{req})[0]
				if result.Err != nil {
					t.Fatal(result.Err)
				}
				check(t, rules, fmt.Sprintf("%s, %T, names %v", profile, key, names), result.Chain[0])
			}
		}
	}
	if _, err := a.Revoke(context.Background(), ca.RevokeRequest{ID: spiffeid.RequireFromPath(td, "/ns/default/sa/web")}); err != nil {
		t.Fatal(err)
	}
	state, _ := a.State()
	for i, der := range state.CRL.Lists {
		crl, err := zx509.ParseRevocationList(der)
		if err != nil {
			t.Fatal(err)
		}
		report(t, fmt.Sprintf("CRL %d", i), zlint.LintRevocationListEx(crl, rules))
	}
}

func check(t *testing.T, rules lint.Registry, what string, der []byte) {
	t.Helper()
	cert, err := zx509.ParseCertificate(der)
	if err != nil {
		t.Errorf("%s: %v", what, err)
		return
	}
	report(t, what, zlint.LintCertificateEx(cert, rules))
}

func report(t *testing.T, what string, results *zlint.ResultSet) {
	t.Helper()
	for name, result := range results.Results {
		meta := result.LintMetadata
		webRule := meta.Source == lint.CABFBaselineRequirements
		if webRule && webPKI[name] != "" {
			continue
		}
		if result.Status >= lint.Error || (result.Status == lint.Warn && !webRule) {
			t.Errorf("%s: %s (%s): %v %s", what, name, meta.Source, result.Status, result.Details)
		}
	}
}
