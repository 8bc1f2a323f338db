package certfile_test

import (
	"context"
	"crypto/tls"
	"fmt"
	"log"
	"log/slog"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/legation-io/legation/sdk/certfile"
	"github.com/legation-io/legation/sdk/chaincheck"
	"github.com/legation-io/legation/sdk/drain"
	"github.com/legation-io/legation/sdk/identity"
	"github.com/legation-io/legation/sdk/mtls"
)

// An HTTPS server that takes a new certificate without a restart.
func Example() {
	dir, err := os.MkdirTemp("", "certfile")
	if err != nil {
		log.Fatal(err)
	}
	defer os.RemoveAll(dir)
	selfSigned(dir, "first")

	files, err := certfile.New(certfile.Config{
		Certificate: filepath.Join(dir, "tls.crt"),
		Key:         filepath.Join(dir, "tls.key"),
		Logger:      slog.New(slog.DiscardHandler),
	})
	if err != nil {
		log.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error)
	go func() { done <- files.Run(ctx) }()

	server := &http.Server{TLSConfig: &tls.Config{GetCertificate: files.GetCertificate}}
	fmt.Println(served(server.TLSConfig))

	_, changed, _ := files.Current()
	selfSigned(dir, "second")
	<-changed
	fmt.Println(served(server.TLSConfig))

	cancel()
	fmt.Println(<-done)
	// Output:
	// CN=first
	// CN=second
	// <nil>
}

// A bad file changes nothing, and says why.
func ExampleSource_Reload() {
	dir, err := os.MkdirTemp("", "certfile")
	if err != nil {
		log.Fatal(err)
	}
	defer os.RemoveAll(dir)
	selfSigned(dir, "good")
	files, err := certfile.New(certfile.Config{Certificate: filepath.Join(dir, "tls.crt"), Key: filepath.Join(dir, "tls.key"), Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		log.Fatal(err)
	}

	if err := os.WriteFile(filepath.Join(dir, "tls.key"), []byte("-----BEGIN PRIVATE KEY-----\nMIGH"), 0o600); err != nil {
		log.Fatal(err)
	}
	fmt.Println(files.Reload() != nil, files.Status().Refused != nil)
	c, err := files.GetCertificate(nil)
	fmt.Println(c.Leaf.Subject, err)
	// Output:
	// true true
	// CN=good <nil>
}

// A service with mutual TLS whose SVID and bundle another program writes to
// files (spiffe-helper, a CSI driver), ended by SIGTERM without losing a request.
func Example_mutualTLS() {
	run := func(ctx context.Context, dir string, handler http.Handler) error {
		files, err := certfile.New(certfile.Config{
			Certificate: filepath.Join(dir, "svid.pem"), Key: filepath.Join(dir, "svid_key.pem"), Bundle: filepath.Join(dir, "bundle.pem"),
		})
		if err != nil {
			return err
		}
		listener, err := mtls.Listen("tcp", ":8443", mtls.ServerConfig{
			Source:     files,
			Authorize:  mtls.AuthorizeMemberOf(spiffeid.RequireTrustDomainFromString("example.org")),
			Revocation: chaincheck.Prefer, // there are no CRL files
		})
		if err != nil {
			return err
		}
		return drain.Run(ctx, drain.Config{Reload: []func() error{files.Reload}},
			drain.HTTP(&http.Server{Handler: handler}, listener), drain.Background("certificate files", files.Run))
	}
	fmt.Println(run(context.Background(), "/run/no/such/folder", http.NotFoundHandler()))
	// Output: /run/no/such/folder/svid.pem does not exist: stat /run/no/such/folder/svid.pem: no such file or directory
}

// Files that something else writes, perhaps later.
func ExampleConfig_mayAppear() {
	files, err := certfile.New(certfile.Config{Certificate: "/run/secrets/tls.pem", MayAppear: true, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		log.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Millisecond)
	defer cancel()
	_, err = identity.Wait(ctx, files)
	fmt.Println(err)
	// Output: context deadline exceeded: no identity yet: waiting for the files of /run/secrets/tls.pem: /run/secrets/tls.pem does not exist: stat /run/secrets/tls.pem: no such file or directory
}

func served(config *tls.Config) any {
	c, err := config.GetCertificate(&tls.ClientHelloInfo{})
	if err != nil {
		return err
	}
	return c.Leaf.Subject
}

// selfSigned writes a pair, the key first.
func selfSigned(dir, name string) {
	cert, key := filepath.Join(dir, "tls.crt"), filepath.Join(dir, "tls.key")
	out, err := exec.Command("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes",
		"-subj", "/CN="+name, "-days", "1", "-keyout", key, "-out", cert).CombinedOutput()
	if err != nil {
		log.Fatalf("openssl: %v\n%s", err, out)
	}
}
