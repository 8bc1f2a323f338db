package identity_test

import (
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"log"

	"github.com/legation-io/legation/sdk/identity"
	"github.com/legation-io/legation/sdk/internal/pkitest"
)

// A source of what a program holds in memory, here from PEM.
func Example() {
	ca := pkitest.Example("example.org")
	cert := ca.Issue("/ns/ml/sa/model", nil)
	key, _ := x509.MarshalPKCS8PrivateKey(cert.PrivateKey)
	var chain []byte
	for _, der := range cert.Certificate {
		chain = append(chain, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})...)
	}

	snapshot, err := identity.PEM{
		Certificate: chain,
		Key:         pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: key}), // wiped
		Bundle:      pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: ca.Root().Cert.Raw}),
	}.Snapshot()
	if err != nil {
		log.Fatal(err)
	}
	source := identity.NewMemory(snapshot)
	now, _, err := source.Current()
	fmt.Println(now.ID, now.Certificate.PrivateKey, err)
	// Output: spiffe://example.org/ns/ml/sa/model private key (ECDSA P-256) <nil>
}

// A source says what it waits for.
func ExampleNotReady() {
	var source identity.Memory
	_, _, err := source.Current()
	fmt.Println(err)
	// Output: no identity yet: waiting for the program to set it
}
