package acmecert_test

import (
	"crypto/tls"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/legation-io/legation/sdk/acmecert"
	"github.com/legation-io/legation/sdk/identity"
	"github.com/legation-io/legation/sdk/mtls"
)

// A public HTTPS server whose certificate renews itself. The example contacts
// nobody: it does not call Run.
func Example() {
	m, err := acmecert.New(acmecert.Config{
		Domains:     []string{"Model.Example.ORG"},
		Email:       "ops@example.org",
		TermsAgreed: true,
		Directory:   acmecert.LetsEncryptStaging,
		Storage:     &acmecert.Memory{}, // a Folder where certificates shall survive the process
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	// go m.Run(ctx)
	// go http.ListenAndServe(":80", m.HTTPHandler(nil))
	server := &http.Server{Addr: ":443", TLSConfig: m.TLSConfig()}
	// server.ListenAndServeTLS("", "")
	fmt.Println(server.TLSConfig.NextProtos)
	for _, s := range m.Status() {
		fmt.Println(s.Domain, s.Err)
	}
	// Output:
	// [h2 http/1.1 acme-tls/1]
	// model.example.org not yet ordered or loaded
}

// Keys and certificates in an encrypted folder that only the holder of the
// key can read.
func ExampleOpenFolder() {
	dir, err := os.MkdirTemp("", "acmecert")
	if err != nil {
		fmt.Println(err)
		return
	}
	defer os.RemoveAll(dir)
	keyFile := filepath.Join(dir, "sealing.key")
	// openssl rand -hex 32 > sealing.key
	os.WriteFile(keyFile, []byte("6f1d0c3be2a94857b1a0c9d8e7f60514233241506f7e8d9cabbac9d8e7f60512\n"), 0o600)

	folder, err := acmecert.OpenFolder(acmecert.FolderConfig{Path: filepath.Join(dir, "certificates"), KeyFile: keyFile})
	if err != nil {
		fmt.Println(err)
		return
	}
	_, err = acmecert.New(acmecert.Config{Domains: []string{"model.example.org"}, TermsAgreed: true, Storage: folder})
	fmt.Println(err)
	// Output: <nil>
}

// HTTP-01 is answered on the mux that the service has already.
func ExampleManager_HTTPHandler() {
	m, err := acmecert.New(acmecert.Config{Domains: []string{"model.example.org"}, TermsAgreed: true, Storage: &acmecert.Memory{}})
	if err != nil {
		fmt.Println(err)
		return
	}
	mux := http.NewServeMux()
	mux.HandleFunc("/health", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "well") })
	handler := m.HTTPHandler(mux)

	for _, path := range []string{"/health", "/.well-known/acme-challenge/..%2f..%2fetc%2fpasswd"} {
		w := httptest.NewRecorder()
		handler.ServeHTTP(w, httptest.NewRequest("GET", "http://model.example.org"+path, nil))
		fmt.Print(w.Code, " ", w.Body.String(), "\n")
	}
	// Output:
	// 200 well
	// 400 not an ACME challenge token (RFC 8555 8.3)
}

// What a mistaken configuration is told.
func ExampleConfig_Validate() {
	c := acmecert.Config{Domains: []string{"*.example.org"}, Directory: "http://ca.example/directory", Storage: &acmecert.Memory{}}
	fmt.Println(c.Validate())
	// Output:
	// acmecert: Domains: "*.example.org": a wildcard is proved by DNS-01 alone: set DNS and Challenges (RFC 8555 8.4)
	// Directory: "http://ca.example/directory" is refused: ACME is spoken over https alone (RFC 8555 6.1), give a URL like https://ca.example/directory
}

// Another server's configuration takes the certificate by GetCertificate.
func ExampleManager_GetCertificate() {
	m, err := acmecert.New(acmecert.Config{Domains: []string{"model.example.org"}, TermsAgreed: true, Storage: &acmecert.Memory{}})
	if err != nil {
		fmt.Println(err)
		return
	}
	config := &tls.Config{MinVersion: tls.VersionTLS13, GetCertificate: m.GetCertificate}
	_, err = config.GetCertificate(&tls.ClientHelloInfo{ServerName: "elsewhere.example.org"})
	fmt.Println(err)
	// Output: acmecert: no certificate of "elsewhere.example.org": it is not one of Config.Domains
}

// A port that authenticates clients by SPIFFE ID and shows the public
// certificate to those who ask for the public name.
func ExampleManager_PublicCertificate() {
	m, err := acmecert.New(acmecert.Config{Domains: []string{"model.example.org"}, TermsAgreed: true, Storage: &acmecert.Memory{}})
	if err != nil {
		fmt.Println(err)
		return
	}
	_, err = mtls.NewServer(mtls.ServerConfig{
		Source:      &identity.Memory{}, // workloadapi.Open in a real service
		Authorize:   mtls.AuthorizeMemberOf(spiffeid.RequireTrustDomainFromString("example.org")),
		Certificate: m.PublicCertificate,
	})
	fmt.Println(err)
	// Output: <nil>
}
