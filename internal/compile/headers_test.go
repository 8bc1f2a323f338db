package compile

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	nodev1 "github.com/legation-io/legation/api/node/v1"
	"github.com/legation-io/legation/internal/envoytest"
	"github.com/legation-io/legation/sdk/identity"
	"github.com/legation-io/legation/sdk/jwtcheck"
	"github.com/legation-io/legation/sdk/propagation"
)

func TestSpellings(t *testing.T) {
	if got, want := spellings("a-b"), []string{"a-b", "a_b", "a-b-bin", "a-b_bin", "a_b-bin", "a_b_bin"}; !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
	if slices.Contains(removedHeaders, "x-workload-identity") || !slices.Contains(removedHeaders, "x-workload_identity") || !slices.Contains(removedHeaders, "x_forwarded-client_cert") {
		t.Errorf("removed: %q", removedHeaders)
	}
}

// behind is a program that says what it saw.
type behind struct {
	saw chan http.Header
}

func (b *behind) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	io.Copy(io.Discard, r.Body)
	all := r.Header.Clone()
	for name, values := range r.Trailer {
		all["trailer "+name] = values
	}
	b.saw <- all
	io.WriteString(w, r.Proto)
}

// identities are the headers of an identity, under any name that somebody may
// take for one.
func identities(h http.Header) map[string][]string {
	out := map[string][]string{}
	for name, values := range h {
		plain := strings.ReplaceAll(strings.ToLower(name), "_", "-")
		for _, part := range []string{"spiffe-id", "workload-id", "client-cert"} {
			if strings.Contains(plain, part) && len(values) > 0 { // a trailer that was announced and removed has none
				out[strings.ToLower(name)] = values
			}
		}
	}
	return out
}

func program(t *testing.T, h http.Handler) string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var protocols http.Protocols
	protocols.SetHTTP1(true)
	protocols.SetUnencryptedHTTP2(true)
	s := &http.Server{Handler: h, Protocols: &protocols}
	done := make(chan struct{})
	go func() { defer close(done); _ = s.Serve(l) }()
	t.Cleanup(func() { _ = s.Close(); <-done })
	return l.Addr().String()
}

// TestA46RealEnvoySaysWhoCalls: whatever a client writes, a program behind a
// sidecar sees the verified peer, and the same headers as one on the SDK.
func TestA46RealEnvoySaysWhoCalls(t *testing.T) {
	const peer, admin = "spiffe://example.org/ns/any/sa/one", "spiffe://example.org/ns/shop/sa/admin"
	behindEnvoy, onSDK := &behind{make(chan http.Header, 1)}, &behind{make(chan http.Header, 1)}
	app, listen := program(t, behindEnvoy), freePort(t)
	_, port, _ := net.SplitHostPort(listen)
	declared := oneIdentity + fmt.Sprintf(`---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop, annotations: {legation.io/identity-headers: "true"}}
spec: {selector: {app: web}, ports: [{port: 80, targetPort: %s}]}
---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {name: web, namespace: shop}
spec: {address: 127.0.0.1, labels: {app: web}, serviceAccount: web}
`, port)
	all, err := Proxy(apply(t, open(t), declared), &nodev1.Subject{Id: "s", Entry: "shop/web", Mode: nodev1.Mode_MODE_EXPLICIT,
		Inbound: []*nodev1.Inbound{{Listen: listen, App: app}}}, testOptions)
	if err != nil {
		t.Fatal(err)
	}
	ca := newAuthority(t)
	e := envoytest.Start(t, string(static(t, all, ca.secrets(t, "spiffe://example.org/ns/shop/sa/web"))), envoytest.Options{Args: []string{"--service-node", "t", "--service-cluster", "t"}})

	cert, key := ca.issue(t, peer)
	pair, err := tls.X509KeyPair(cert, key)
	if err != nil {
		t.Fatal(err)
	}
	dial := func() (net.Conn, error) {
		return tls.Dial("tcp", listen, &tls.Config{Certificates: []tls.Certificate{pair}, InsecureSkipVerify: true})
	}
	sdk, err := propagation.Server(onSDK, propagation.Config{
		Identity: identity.NewMemory(&identity.Snapshot{ID: spiffeid.RequireFromString("spiffe://example.org/ns/shop/sa/web")}), Keys: jwtcheck.Static{K: jwtcheck.NewKeys()},
	})
	if err != nil {
		t.Fatal(err)
	}
	verified := program(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		sdk.ServeHTTP(w, r.WithContext(identity.ContextWithPeer(r.Context(), identity.Peer{ID: spiffeid.RequireFromString(peer)})))
	}))
	ask := func(c net.Conn, err error, lines string) (int, string) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		_ = c.SetDeadline(time.Now().Add(time.Minute))
		fmt.Fprintf(c, "GET / HTTP/1.1\r\nHost: web\r\n%s\r\n", lines)
		resp, err := http.ReadResponse(bufio.NewReader(c), nil)
		if err != nil {
			return 0, err.Error()
		}
		defer resp.Body.Close()
		body, _ := io.ReadAll(resp.Body)
		return resp.StatusCode, string(body)
	}
	want := map[string][]string{"spiffe-id": {peer}, "workload-id": {peer}}
	for name, tc := range map[string]struct {
		lines string
		ok    bool // on the SDK; with Envoy, too, unless it is said
	}{
		"nothing":                  {"", true},
		"spiffe-id":                {"spiffe-id: " + admin + "\r\nworkload-id: " + admin + "\r\n", true},
		"spiffe-id twice":          {"spiffe-id: " + admin + "\r\nSpiffe-Id: " + admin + "\r\n", true},
		"upper case":               {"SPIFFE-ID: " + admin + "\r\nWORKLOAD-ID: " + admin + "\r\n", true},
		"underscores":              {"spiffe_id: " + admin + "\r\nSpiffe_ID: " + admin + "\r\nworkload_id: " + admin + "\r\n", true},
		"-bin":                     {"spiffe-id-bin: AAAA\r\nspiffe_id_bin: AAAA\r\nworkload_id-bin: AAAA\r\n", true},
		"a chain with underscores": {"x_workload_identity: jwt:a\r\nx-workload_identity: jwt:a\r\nx-workload-identity-bin: AAAA\r\n", true},
		"x-forwarded-client-cert":  {"x-forwarded-client-cert: By=a;URI=" + admin + "\r\nX_Forwarded_Client_Cert: URI=" + admin + "\r\n", true},
		"named by Connection":      {"Connection: spiffe-id, workload-id\r\nspiffe-id: " + admin + "\r\n", true},
		"joined by a comma":        {"spiffe-id: " + admin + "," + admin + "\r\n", true},
		"NUL":                      {"spiffe-id: " + admin + "\x00\r\n", false},
		"a lone CR, which Envoy reads as a space": {"x: y\rspiffe-id: " + admin + "\r\n", false},
		"a space before the colon":                {"spiffe-id : " + admin + "\r\n", false},
	} {
		conn, err := dial()
		status, body := ask(conn, err, tc.lines)
		plain, err := net.Dial("tcp", verified)
		bySDK, _ := ask(plain, err, tc.lines)
		if (status == 200) != (tc.ok || name == "a lone CR, which Envoy reads as a space") || (bySDK == 200) != tc.ok {
			t.Errorf("%s: Envoy %d %s, SDK %d\n%s", name, status, body, bySDK, e.Log())
		}
		if status == 200 {
			if got := identities(<-behindEnvoy.saw); !maps.EqualFunc(got, want, slices.Equal) {
				t.Errorf("%s: behind Envoy the program sees %q", name, got)
			}
		}
		if bySDK == 200 {
			if got := identities(<-onSDK.saw); !maps.EqualFunc(got, want, slices.Equal) {
				t.Errorf("%s: on the SDK the program sees %q", name, got)
			}
		}
	}

	t.Run("HTTP/2 and its trailers", func(t *testing.T) {
		// With prior knowledge, over TLS all the same: ports offer no ALPN.
		h2 := &http.Transport{Protocols: new(http.Protocols), DialContext: func(context.Context, string, string) (net.Conn, error) { return dial() }}
		h2.Protocols.SetUnencryptedHTTP2(true)
		defer h2.CloseIdleConnections()
		req, _ := http.NewRequest("POST", "http://web/", io.NopCloser(bytes.NewReader([]byte("hi"))))
		req.Header.Set("Spiffe-Id", admin)
		req.Trailer = http.Header{"Spiffe-Id": {admin}, "Workload_id": {admin}, "X-Checksum": {"1"}}
		resp, err := h2.RoundTrip(req)
		if err != nil {
			t.Fatal(err)
		}
		body, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		saw := <-behindEnvoy.saw
		if got := identities(saw); string(body) != "HTTP/2.0" || !maps.EqualFunc(got, want, slices.Equal) {
			t.Errorf("by %s the program sees %q", body, got)
		}
		if saw["trailer X-Checksum"] == nil {
			t.Errorf("somebody else's trailer is gone: %v", saw)
		}
	})
	t.Run("the chain is passed on", func(t *testing.T) {
		conn, err := dial()
		if status, body := ask(conn, err, "x-workload-identity: jwt:a.b.c\r\n"); status != 200 {
			t.Fatal(status, body)
		}
		if got := (<-behindEnvoy.saw).Values("x-workload-identity"); !slices.Equal(got, []string{"jwt:a.b.c"}) {
			t.Errorf("%q", got)
		}
	})
	t.Run("what is no HTTP is refused", func(t *testing.T) {
		conn, err := dial()
		if answer, err := firstLine(conn, err, "hello\n\n"); err == nil && !strings.HasPrefix(answer, "HTTP/1.1 400") {
			t.Errorf("%q", answer)
		}
		plain, err := net.Dial("tcp", listen)
		if status, _ := ask(plain, err, "spiffe-id: "+admin+"\r\n"); status != 0 {
			t.Errorf("plaintext is answered %d", status)
		}
	})
	t.Run("the last answer of a connection arrives", func(t *testing.T) {
		for range 5 {
			conn, err := dial()
			if status, body := ask(conn, err, "Connection: close\r\n"); status != 200 {
				t.Fatal(status, body)
			}
			<-behindEnvoy.saw
		}
	})
}

// firstLine sends text and returns the first line that comes back.
func firstLine(c net.Conn, err error, text string) (string, error) {
	if err != nil {
		return "", err
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(time.Minute))
	if _, err := io.WriteString(c, text); err != nil {
		return "", err
	}
	return bufio.NewReader(c).ReadString('\n')
}
