package renewal_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"math/big"
	"sync/atomic"
	"time"

	"github.com/legation-io/legation/sdk/renewal"
)

// newCA makes the CA of the examples.
func newCA() *renewal.CA {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		panic(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "example root"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(10_000 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		panic(err)
	}
	root, err := x509.ParseCertificate(der)
	if err != nil {
		panic(err)
	}
	return &renewal.CA{Certificate: root, Key: key}
}

// A server whose certificate renews itself.
func Example() {
	ctx := context.Background()
	var current atomic.Pointer[tls.Certificate]

	store, err := renewal.NewMemory(&renewal.Certificate{
		Metadata: renewal.ObjectMeta{Name: "web"},
		Spec:     renewal.CertificateSpec{SecretName: "web-tls", DNSNames: []string{"web.example.org"}, IssuerRef: renewal.IssuerRef{Name: "ca"}},
	})
	if err != nil {
		panic(err)
	}
	scheduler, err := renewal.New(renewal.Config{
		Store: store, Issuers: renewal.Static(map[string]renewal.Issuer{"ca": newCA()}),
		Updated: func(_ *renewal.Certificate, s *renewal.Secret) {
			if c, err := s.TLS(); err == nil {
				current.Store(c)
			}
		},
	})
	if err != nil {
		panic(err)
	}
	if err := scheduler.RunOnce(ctx); err != nil { // the first certificate is there before anybody connects
		panic(err)
	}
	config := &tls.Config{GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return current.Load(), nil }}
	// And then: go scheduler.Run(ctx)

	c, err := config.GetCertificate(nil)
	if err != nil {
		panic(err)
	}
	fmt.Println(c.Leaf.DNSNames, "for", c.Leaf.NotAfter.Sub(c.Leaf.NotBefore))
	// Output: [web.example.org] for 2160h0m0s
}

// Certificates are declared in cert-manager's YAML; mistakes are named with
// their line.
func ExampleParse() {
	c, err := renewal.Parse([]byte(`
apiVersion: cert-manager.io/v1
kind: Certificate
metadata: {name: web, namespace: shop}
spec:
  secretName: web-tls
  duration: 24h
  renewBefore: 24h
  dnsNames: [web.example.org]
  issuerRef: {name: ca}
`))
	fmt.Println(c.Key(), err)
	fmt.Println(c.Validate())

	_, err = renewal.Parse([]byte("apiVersion: cert-manager.io/v1\nkind: Certificate\nspec:\n  dnsnames: [a]\n"))
	fmt.Println(err)
	// Output:
	// shop/web <nil>
	// spec.renewBefore: 24h0m0s is not below spec.duration, 24h0m0s: it would be renewed for ever; leave it out for a third of the lifetime (8h0m0s), or ask for a longer spec.duration
	// line 4: spec.dnsnames: there is no such field; did you mean dnsNames?
}

// When certificates of different lives are due.
func ExampleRenewalTime() {
	begin := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	for _, life := range []time.Duration{time.Hour, 24 * time.Hour, 7 * 24 * time.Hour, 90 * 24 * time.Hour} {
		at, _ := renewal.RenewalTime(&renewal.CertificateSpec{}, begin, begin.Add(life), begin)
		fmt.Printf("lives %v, is renewed after %v\n", life, at.Sub(begin))
	}
	// Output:
	// lives 1h0m0s, is renewed after 40m0s
	// lives 24h0m0s, is renewed after 16h0m0s
	// lives 168h0m0s, is renewed after 96h0m0s
	// lives 2160h0m0s, is renewed after 1440h0m0s
}

// busy is an Issuer that says when to come back.
type busy struct{}

func (busy) Issue(context.Context, *renewal.Request) (*renewal.Issued, error) {
	return nil, renewal.RetryAfter(time.Hour, "too many requests")
}

// An Issuer of one's own, and what the status says when it refuses.
func ExampleIssuer() {
	store, err := renewal.NewMemory(&renewal.Certificate{
		Metadata: renewal.ObjectMeta{Name: "web"},
		Spec:     renewal.CertificateSpec{SecretName: "web-tls", DNSNames: []string{"web.example.org"}, IssuerRef: renewal.IssuerRef{Name: "busy"}},
	})
	if err != nil {
		panic(err)
	}
	scheduler, err := renewal.New(renewal.Config{Store: store, Issuers: renewal.Static(map[string]renewal.Issuer{"busy": busy{}})})
	if err != nil {
		panic(err)
	}
	fmt.Println(scheduler.RunOnce(context.Background()) != nil)
	c, err := store.Get(context.Background(), renewal.Key{Namespace: "default", Name: "web"})
	if err != nil {
		panic(err)
	}
	issuing := c.Status.Condition(renewal.Issuing)
	fmt.Println(issuing.Status, issuing.Reason, *c.Status.FailedIssuanceAttempts)
	fmt.Println(issuing.Message)
	// Output:
	// true
	// False Failed 1
	// The certificate request has failed to complete and will be retried: too many requests
}

// Somebody asks for a renewal now, as cmctl renew does.
func ExampleTrigger() {
	store, err := renewal.NewMemory()
	if err != nil {
		panic(err)
	}
	err = renewal.Trigger(context.Background(), store, renewal.Key{Namespace: "default", Name: "web"})
	fmt.Println(errors.Is(err, renewal.ErrNotFound), err)
	// Output: true certificate default/web: not found
}

// Which certificates a Scheduler takes care of.
func ExampleParseFilter() {
	f, err := renewal.ParseFilter([]byte("selector: team=web,tier in (front,edge)\nissuers: ['ClusterIssuer/*']\n"))
	fmt.Printf("%q %q %v\n", f.Selector, f.Issuers, err)
	// Output: "team=web,tier in (front,edge)" ["ClusterIssuer/*"] <nil>
}
