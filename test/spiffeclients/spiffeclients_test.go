// Package spiffeclients proves that programs written for SPIFFE work with the
// real agent as they are: go-spiffe, and the Python client from PyPI.
package spiffeclients

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/legation-io/legation/test/stand"
	"github.com/spiffe/go-spiffe/v2/bundle/jwtbundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/spiffetls"
	"github.com/spiffe/go-spiffe/v2/spiffetls/tlsconfig"
	"github.com/spiffe/go-spiffe/v2/svid/jwtsvid"
	"github.com/spiffe/go-spiffe/v2/workloadapi"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

func TestMain(m *testing.M) { stand.Main(m) }

var web = spiffeid.RequireFromString("spiffe://example.org/ns/shop/sa/web")

// identity matches this test's own process.
func identity(ttl string) string {
	return fmt.Sprintf("apiVersion: legation.io/v1alpha1\nkind: WorkloadIdentity\nmetadata: {name: web, namespace: shop}\nspec:\n  node: node-1\n  selectors: [\"unix:uid:%d\"]\n  ttl: %s\n", os.Geteuid(), ttl)
}

func address(a *stand.Agent) workloadapi.ClientOption {
	return workloadapi.WithAddr("unix://" + a.Socket)
}

// watcher keeps what the stream delivers.
type watcher struct {
	mu   sync.Mutex
	got  []*workloadapi.X509Context
	errs []error
}

func (w *watcher) OnX509ContextUpdate(c *workloadapi.X509Context) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.got = append(w.got, c)
}

func (w *watcher) OnX509ContextWatchError(err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.errs = append(w.errs, err)
}

// serial of the newest SVID, "" before the first.
func (w *watcher) serial() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.got) == 0 {
		return ""
	}
	return w.got[len(w.got)-1].DefaultSVID().Certificates[0].SerialNumber.Text(16)
}

func (w *watcher) denied() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, err := range w.errs {
		if status.Code(err) == codes.PermissionDenied {
			return err
		}
	}
	return nil
}

func TestGoSPIFFE(t *testing.T) {
	s := stand.New(t)
	a := s.Agent("node-1")
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()

	t.Run("a caller without an entry is told why", func(t *testing.T) {
		_, err := workloadapi.FetchX509SVID(ctx, address(a))
		if status.Code(err) != codes.PermissionDenied || !strings.Contains(err.Error(), "no registration entry of this node matches") {
			t.Errorf("got %v", err)
		}
	})
	s.Apply(identity("1h"))

	var w watcher
	var watching sync.WaitGroup
	watched, stop := context.WithCancel(ctx)
	watching.Go(func() { _ = workloadapi.WatchX509Context(watched, &w, address(a)) })
	defer watching.Wait()
	defer stop()

	source, err := workloadapi.NewX509Source(ctx, workloadapi.WithClientOptions(address(a)))
	if err != nil {
		t.Fatal(err)
	}
	defer source.Close()

	t.Run("the SVID is good and its roots verify it", func(t *testing.T) {
		got, err := source.GetX509SVID()
		if err != nil {
			t.Fatal(err)
		}
		if got.ID != web || got.Certificates[0].ExtKeyUsage[0] != x509.ExtKeyUsageServerAuth {
			t.Errorf("%s, %v", got.ID, got.Certificates[0].ExtKeyUsage)
		}
		if _, err := source.GetX509BundleForTrustDomain(web.TrustDomain()); err != nil {
			t.Error(err)
		}
	})
	t.Run("two programs talk mutual TLS with it", func(t *testing.T) {
		l, err := spiffetls.ListenWithMode(ctx, "tcp", "127.0.0.1:0", spiffetls.MTLSServerWithSource(tlsconfig.AuthorizeID(web), source))
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		served := make(chan error, 1)
		go func() {
			conn, err := l.Accept()
			if err == nil {
				_, err = io.WriteString(conn, "hello")
				err = errors.Join(err, conn.Close())
			}
			served <- err
		}()
		conn, err := spiffetls.DialWithMode(ctx, "tcp", l.Addr().String(), spiffetls.MTLSClientWithSource(tlsconfig.AuthorizeID(web), source))
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		raw, err := io.ReadAll(conn)
		if err != nil || string(raw) != "hello" {
			t.Errorf("%q, %v", raw, err)
		}
		if err := <-served; err != nil {
			t.Error(err)
		}
		if v := conn.(interface{ ConnectionState() tls.ConnectionState }).ConnectionState().Version; v != tls.VersionTLS13 {
			t.Errorf("TLS version %x", v)
		}
	})
	t.Run("a JWT-SVID is good for its audience, here and by the agent", func(t *testing.T) {
		token, err := workloadapi.FetchJWTSVID(ctx, jwtsvid.Params{Audience: "db"}, address(a))
		if err != nil {
			t.Fatal(err)
		}
		bundles, err := workloadapi.FetchJWTBundles(ctx, address(a))
		if err != nil {
			t.Fatal(err)
		}
		var trusted jwtbundle.Source = bundles
		got, err := jwtsvid.ParseAndValidate(token.Marshal(), trusted, []string{"db"})
		if err != nil || got.ID != web {
			t.Errorf("%v, %v", got, err)
		}
		if _, err := jwtsvid.ParseAndValidate(token.Marshal(), trusted, []string{"other"}); err == nil {
			t.Error("it is good for another audience too")
		}
		if left := time.Until(got.Expiry); left > 5*time.Minute+10*time.Second || left < 4*time.Minute {
			t.Errorf("it lives %s, not 5 minutes", left)
		}
		if _, err := workloadapi.ValidateJWTSVID(ctx, token.Marshal(), "db", address(a)); err != nil {
			t.Errorf("the agent refuses it: %v", err)
		}
		if _, err := workloadapi.ValidateJWTSVID(ctx, token.Marshal(), "other", address(a)); status.Code(err) != codes.InvalidArgument {
			t.Errorf("the agent answers for another audience: %v", err)
		}
	})
	t.Run("a rotation arrives on the open stream", func(t *testing.T) {
		stand.Until(t, "the first arrives", func() error {
			if w.serial() == "" {
				return errors.New("nothing yet")
			}
			return nil
		})
		before := w.serial()
		s.Apply(identity("2h"))
		stand.Until(t, "the next arrives", func() error {
			if w.serial() == before {
				return errors.New("the same")
			}
			return nil
		})
	})
	t.Run("a revoked certificate is replaced, a revoked identity is denied, and lifted it is back", func(t *testing.T) {
		before := w.serial()
		s.Must("revoke", "--serial", before)
		stand.Until(t, "a new key and certificate arrive", func() error {
			if w.serial() == before {
				return errors.New("the same")
			}
			return nil
		})
		s.Must("revoke", web.String())
		stand.Until(t, "the stream is denied", func() error {
			if w.denied() == nil {
				return errors.New("not yet")
			}
			return nil
		})
		if err := w.denied(); !strings.Contains(err.Error(), "revoked") {
			t.Errorf("denied with %v", err)
		}
		if _, err := workloadapi.FetchJWTSVID(ctx, jwtsvid.Params{Audience: "db"}, address(a)); status.Code(err) != codes.PermissionDenied {
			t.Errorf("a JWT-SVID of a revoked identity: %v", err)
		}
		s.Must("lift", web.String())
		stand.Until(t, "it is issued again", func() error {
			_, err := workloadapi.FetchX509SVID(ctx, address(a))
			return err
		})
	})
	t.Run("while the control plane is away", func(t *testing.T) {
		s.Process.Kill()
		if _, err := workloadapi.FetchX509SVID(ctx, address(a)); err != nil {
			t.Errorf("X.509: %v", err)
		}
		if _, err := workloadapi.FetchJWTBundles(ctx, address(a)); err != nil {
			t.Errorf("bundles: %v", err)
		}
	})
}
