package folder_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"fmt"
	"math/big"
	"os"
	"path/filepath"
	"time"

	"github.com/legation-io/legation/sdk/renewal"
	"github.com/legation-io/legation/sdk/renewal/folder"
)

const declared = `apiVersion: cert-manager.io/v1
kind: Certificate
metadata: {name: web, namespace: shop}
spec:
  secretName: web-tls
  dnsNames: [web.example.org]
  issuerRef: {name: ca}
`

// Certificates declared in a folder; a program that reads files finds key and
// certificate in another.
func Example() {
	dir, err := os.MkdirTemp("", "folder")
	if err != nil {
		panic(err)
	}
	defer os.RemoveAll(dir)
	if err := os.WriteFile(filepath.Join(dir, "web.yaml"), []byte(declared), 0o644); err != nil {
		panic(err)
	}

	store, err := folder.Open(folder.Config{Dir: dir, State: filepath.Join(dir, "state")})
	if err != nil {
		panic(err)
	}
	scheduler, err := renewal.New(renewal.Config{Store: store, Issuers: renewal.Static(map[string]renewal.Issuer{"ca": newCA()})})
	if err != nil {
		panic(err)
	}
	if err := scheduler.RunOnce(context.Background()); err != nil { // or scheduler.Run, until it ends
		panic(err)
	}

	files, err := filepath.Glob(filepath.Join(store.SecretDir("shop", "web-tls"), "[a-z]*"))
	if err != nil {
		panic(err)
	}
	for _, f := range files {
		fmt.Println(filepath.Base(f))
	}
	// Output:
	// ca.crt
	// tls.crt
	// tls.key
}

func newCA() *renewal.CA {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		panic(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotBefore: time.Now(), NotAfter: time.Now().Add(10_000 * time.Hour), IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
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
