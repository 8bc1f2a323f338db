package mtls_test

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"log"
	"net/http"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/legation-io/legation/sdk/chaincheck"
	"github.com/legation-io/legation/sdk/identity"
	"github.com/legation-io/legation/sdk/internal/pkitest"
	"github.com/legation-io/legation/sdk/mtls"
)

// An HTTP server and its client. Programs take their Source from
// sdk/workloadapi; here an authority in memory gives both.
func Example() {
	ca := pkitest.Example("example.org")
	model := spiffeid.RequireFromString("spiffe://example.org/ns/ml/sa/model")

	l, err := mtls.Listen("tcp", "127.0.0.1:0", mtls.ServerConfig{
		Source:    ca.Source("/ns/ml/sa/model"),
		Authorize: mtls.AuthorizePath(model.TrustDomain(), "/ns/shop/sa/*"),
	})
	if err != nil {
		log.Fatal(err)
	}
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		caller, _ := identity.PeerFromContext(r.Context())
		fmt.Fprintf(w, "hello %s", caller.ID)
	})}
	go l.Serve(server)
	defer server.Close()

	d, err := mtls.NewDialer(mtls.ClientConfig{Source: ca.Source("/ns/shop/sa/web"), Authorize: mtls.AuthorizeID(model)})
	if err != nil {
		log.Fatal(err)
	}
	client := &http.Client{Transport: d.Transport()}
	defer client.CloseIdleConnections()
	response, err := client.Get("https://" + l.Addr().String() + "/")
	if err != nil {
		log.Fatal(err)
	}
	defer response.Body.Close()
	body, _ := io.ReadAll(response.Body)
	fmt.Println(response.Proto, string(body))
	// Output: HTTP/2.0 hello spiffe://example.org/ns/shop/sa/web
}

// Raw connections: what Accept returns has a verified peer.
func Example_raw() {
	ca := pkitest.Example("example.org")
	domain := spiffeid.RequireTrustDomainFromString("example.org")
	l, err := mtls.Listen("tcp", "127.0.0.1:0", mtls.ServerConfig{Source: ca.Source("/db"), Authorize: mtls.AuthorizeMemberOf(domain)})
	if err != nil {
		log.Fatal(err)
	}
	defer l.Close()
	go func() {
		c, err := l.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		peer, _ := mtls.PeerOf(c)
		fmt.Fprintf(c, "you are %s", peer.ID.Path())
	}()

	d, err := mtls.NewDialer(mtls.ClientConfig{Source: ca.Source("/app"), Authorize: mtls.AuthorizeID(spiffeid.RequireFromString("spiffe://example.org/db"))})
	if err != nil {
		log.Fatal(err)
	}
	c, err := d.DialContext(context.Background(), "tcp", l.Addr().String())
	if err != nil {
		log.Fatal(err)
	}
	defer c.Close()
	said, _ := io.ReadAll(c)
	state := c.(*tls.Conn).ConnectionState()
	fmt.Println(string(said), "by", mtls.NegotiatedOf(&state).Version, mtls.NegotiatedOf(&state).Group)
	// Output: you are /app by TLS 1.3 X25519MLKEM768
}

// With SPIRE, or any other Workload API whose trust domain publishes no CRLs,
// missing revocation information is accepted by choice.
func ExampleServerConfig_spire() {
	ca := pkitest.Example("spire.example")
	_, err := mtls.NewServer(mtls.ServerConfig{
		Source:     ca.Source("/service"),
		Authorize:  mtls.AuthorizeMemberOf(spiffeid.RequireTrustDomainFromString("spire.example")),
		Revocation: chaincheck.Prefer,
	})
	fmt.Println(err)
	// Output: <nil>
}

// What lacks an authoriser is refused when it is made.
func ExampleNewServer_incomplete() {
	_, err := mtls.NewServer(mtls.ServerConfig{Source: &identity.Memory{}})
	fmt.Println(err)
	// Output: mtls.ServerConfig: no Authorize is set, and letting in everybody is no default: set e.g. AuthorizeID, AuthorizeMemberOf or AuthorizePath
}

// Several services, each at its host.
func ExampleAuthorizeHosts() {
	ca := pkitest.Example("example.org")
	d, err := mtls.NewDialer(mtls.ClientConfig{
		Source: ca.Source("/ns/shop/sa/web"),
		Authorize: mtls.AuthorizeHosts(map[string][]spiffeid.ID{
			"model.internal":    {spiffeid.RequireFromString("spiffe://example.org/ns/ml/sa/model")},
			"features.internal": {spiffeid.RequireFromString("spiffe://example.org/ns/ml/sa/features")},
		}),
	})
	if err != nil {
		log.Fatal(err)
	}
	_, err = d.DialContext(context.Background(), "tcp", "elsewhere.internal:443")
	fmt.Println(err)
	// Output: dial elsewhere.internal:443: no SPIFFE ID is named for the host "elsewhere.internal"; there are: features.internal, model.internal
}
