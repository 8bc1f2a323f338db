package e2e

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/legation-io/legation/sdk/chaincheck"
	"github.com/legation-io/legation/sdk/identity"
	"github.com/legation-io/legation/sdk/light"
	"github.com/legation-io/legation/sdk/mtls"
	"github.com/legation-io/legation/sdk/workloadapi"
	"github.com/legation-io/legation/test/e2e/world"
)

// sdkWorld is a node on which this test's own process is two workloads.
type sdkWorld struct {
	*world.World
	node *world.Node
}

func newSDKWorld(t *testing.T) *sdkWorld {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	w := world.Start(t)
	s := &sdkWorld{World: w, node: w.Join("n1")}
	w.Apply(world.Identity("alice", "n1", "unix:path:"+self) + world.Identity("bob", "n1", "unix:path:"+self))
	return s
}

func (s *sdkWorld) full(name string) *workloadapi.Source {
	s.Helper()
	ctx, cancel := context.WithTimeout(s.Context(), world.Patience)
	defer cancel()
	source, err := workloadapi.Open(ctx, workloadapi.Config{Addr: "unix://" + s.node.Socket, SPIFFEID: spiffeid.RequireFromString(world.ID(name))})
	if err != nil {
		s.Fatal(err)
	}
	s.Cleanup(func() { source.Close() })
	return source
}

func (s *sdkWorld) light(name string) *light.Source {
	s.Helper()
	ctx, cancel := context.WithTimeout(s.Context(), world.Patience)
	defer cancel()
	source, err := light.Open(ctx, light.Config{Addr: "unix://" + s.node.Socket, SPIFFEID: spiffeid.RequireFromString(world.ID(name))})
	if err != nil {
		s.Fatal(err)
	}
	s.Cleanup(func() { source.Close() })
	return source
}

func current(t testing.TB, s identity.Source) *identity.Snapshot {
	t.Helper()
	snapshot, _, err := s.Current()
	if err != nil {
		t.Fatal(err)
	}
	return snapshot
}

// first waits until a source's trust is as wanted, and returns when it was.
func first(s identity.Source, ok func(*chaincheck.Trust) bool) <-chan time.Time {
	at := make(chan time.Time, 1)
	go func() {
		defer close(at)
		deadline := time.After(world.Patience)
		for {
			snapshot, changed, err := s.Current()
			if err == nil && ok(snapshot.Trust) {
				at <- time.Now()
				return
			}
			select {
			case <-changed:
			case <-deadline:
				return
			}
		}
	}()
	return at
}

func chainOf(t testing.TB, s identity.Source) []*x509.Certificate {
	t.Helper()
	var chain []*x509.Certificate
	for _, der := range current(t, s).Certificate.Certificate {
		c, err := x509.ParseCertificate(der)
		if err != nil {
			t.Fatal(err)
		}
		chain = append(chain, c)
	}
	return chain
}

var revokedError = &chaincheck.Error{Cause: chaincheck.Revoked}

// byCRL judges by lists alone, byDenial by the deny set alone.
func byCRL(chain []*x509.Certificate) func(*chaincheck.Trust) bool {
	return func(trust *chaincheck.Trust) bool {
		_, err := chaincheck.Verify(chaincheck.Params{Chain: chain, Roots: trust.Roots, CRLs: trust.CRLs, Usage: chaincheck.Client})
		return errors.Is(err, revokedError)
	}
}

func byDenial(chain []*x509.Certificate) func(*chaincheck.Trust) bool {
	v := chaincheck.NewVerifier(chaincheck.VerifierConfig{Usage: chaincheck.Client, Revocation: chaincheck.Off})
	return func(trust *chaincheck.Trust) bool {
		_, err := v.Verify(context.Background(), trust, chain, nil)
		return errors.Is(err, revokedError)
	}
}

func TestAnSDKProcessSeesARevocationWithinMilliseconds(t *testing.T) {
	t.Parallel()
	s := newSDKWorld(t)
	alice, bob, small := s.full("alice"), s.full("bob"), s.light("bob")
	chain := chainOf(t, alice)
	for name, source := range map[string]identity.Source{"sdk/workloadapi": bob, "sdk/light": small} {
		if trust := current(t, source).Trust; byCRL(chain)(trust) || byDenial(chain)(trust) {
			t.Fatalf("%s: alice is revoked before anybody revoked her", name)
		}
	}

	// Mutual TLS between them, before and after.
	listener, err := mtls.Listen("tcp", "127.0.0.1:0", mtls.ServerConfig{Source: bob, Authorize: mtls.AuthorizeMemberOf(spiffeid.RequireTrustDomainFromString(world.TrustDomain))})
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				_, _ = io.Copy(conn, conn)
			}()
		}
	}()
	dialer, err := mtls.NewDialer(mtls.ClientConfig{Source: alice, Authorize: mtls.AuthorizeID(spiffeid.RequireFromString(world.ID("bob")))})
	if err != nil {
		t.Fatal(err)
	}
	defer dialer.Close()
	dial := func() (net.Conn, error) {
		ctx, cancel := context.WithTimeout(t.Context(), world.Patience)
		defer cancel()
		conn, err := dialer.DialContext(ctx, "tcp", listener.Addr().String())
		if err == nil {
			err = echoes(conn)
		}
		return conn, err
	}
	open, err := dial()
	if err != nil {
		t.Fatal(err)
	}
	defer open.Close()

	seen := map[string]<-chan time.Time{
		"workloadapi, CRL": first(bob, byCRL(chain)), "workloadapi, deny set": first(bob, byDenial(chain)),
		"light, CRL": first(small, byCRL(chain)), "light, deny set": first(small, byDenial(chain)),
	}
	begun := time.Now()
	s.JSON(nil, "revoke", world.ID("alice"), "--reason", "demo")
	done := time.Now()
	// From when the control plane says that it was revoked, commit included.
	at := <-seen["workloadapi, deny set"]
	denial, ok := current(t, bob).Trust.Denied.Lookup(spiffeid.RequireFromString(world.ID("alice")), chain)
	if !ok || denial.Reason != "demo" || at.IsZero() {
		t.Fatalf("the denial is %v", denial)
	}
	t.Logf("workloadapi, deny set: %.1f ms after it was revoked, %.1f ms after the command began, which took %.1f ms", ms(at.Sub(denial.At)), ms(at.Sub(begun)), ms(done.Sub(begun)))
	delete(seen, "workloadapi, deny set")
	for what, at := range seen {
		when, ok := <-at
		if !ok {
			t.Errorf("%s: never", what)
			continue
		}
		t.Logf("%s: %.1f ms after it was revoked", what, ms(when.Sub(denial.At)))
		if when.Sub(denial.At) > world.Patience { // of milliseconds
			t.Errorf("%s: only %s after it was revoked", what, when.Sub(denial.At))
		}
	}
	_ = open.SetReadDeadline(time.Now().Add(world.Patience))
	if _, err := open.Read(make([]byte, 1)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("the open connection of the revoked one goes on: %v", err)
	}
	if conn, err := dial(); err == nil {
		conn.Close()
		t.Error("the revoked one is let in again")
	}
	world.Until(t, world.Patience, "alice's own source says that she has no identity", func() error {
		state, _, err := alice.State()
		if state != workloadapi.NoIdentity {
			return fmt.Errorf("state %s, %v", state, err)
		}
		return nil
	})

	s.JSON(nil, "lift", world.ID("alice"))
	lifted := time.Now()
	world.Until(t, world.Patience, "alice is let in again with another certificate", func() error {
		conn, err := dial()
		if err == nil {
			conn.Close()
		}
		return err
	})
	t.Logf("let in again %.1f ms after the lift", ms(time.Since(lifted)))
	if chainOf(t, alice)[0].Equal(chain[0]) {
		t.Error("the revoked certificate is presented again")
	}
	if trust := current(t, bob).Trust; !byCRL(chain)(trust) || !byDenial(chain)(trust) {
		t.Error("the lift acquits the old certificate")
	}
}

func echoes(conn net.Conn) error {
	_ = conn.SetDeadline(time.Now().Add(world.Patience))
	defer conn.SetDeadline(time.Time{})
	if _, err := io.WriteString(conn, "hello"); err != nil {
		return err
	}
	_, err := io.ReadFull(conn, make([]byte, 5))
	return err
}

func ms(d time.Duration) float64 { return float64(d.Microseconds()) / 1e3 }

func TestARevokedSerialIsReplacedInAnSDKProcess(t *testing.T) {
	t.Parallel()
	s := newSDKWorld(t)
	alice := s.full("alice")
	old := current(t, alice).Certificate.Leaf
	s.JSON(nil, "revoke", "--serial", old.SerialNumber.Text(16), "--reason", "lost")
	world.Until(t, world.Patience, "another certificate is presented", func() error {
		now, _, err := alice.Current()
		if err != nil {
			return err
		}
		if now.Certificate.Leaf.Equal(old) {
			return errors.New("still the revoked one")
		}
		return nil
	})
}

func TestAnSDKProcessOutlivesItsAgent(t *testing.T) {
	t.Parallel()
	s := newSDKWorld(t)
	full, small := s.full("alice"), s.light("alice")
	before := current(t, full)
	s.node.Kill()
	for name, state := range map[string]func() (workloadapi.State, time.Time, error){"sdk/workloadapi": full.State, "sdk/light": small.State} {
		world.Until(t, world.Patience, name+" says that the agent is away", func() error {
			if st, _, err := state(); st != workloadapi.Unavailable {
				return fmt.Errorf("state %s, %v", st, err)
			}
			return nil
		})
	}
	if now := current(t, full); now.Certificate != before.Certificate || current(t, small).Certificate == nil {
		t.Error("the last certificate is not served any more")
	}
	s.node.Start()
	for name, state := range map[string]func() (workloadapi.State, time.Time, error){"sdk/workloadapi": full.State, "sdk/light": small.State} {
		world.Until(t, world.Patience, name+" is current again", func() error {
			if st, _, err := state(); st != workloadapi.Current {
				return fmt.Errorf("state %s, %v", st, err)
			}
			return nil
		})
	}
}

// TestTheSmallestProgramRunsAgainstARealAgent: hello-mtls, as two workloads
// told apart by path, by the Workload API and by SDS, in TLS 1.3 and 1.2.
func TestTheSmallestProgramRunsAgainstARealAgent(t *testing.T) {
	t.Parallel()
	w := world.Start(t)
	node := w.Join("n1")
	hub, sensor := w.Path("hub"), w.Path("sensor")
	cmd := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w", "-o", hub, "./examples/hello-mtls")
	cmd.Dir, cmd.Env = filepath.Join(world.Root(t), "sdk"), append(os.Environ(), "CGO_ENABLED=0")
	if talk, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, talk)
	}
	if err := os.Link(hub, sensor); err != nil {
		t.Fatal(err)
	}
	w.Apply(world.Identity("hub", "n1", "unix:path:"+hub) + world.Identity("sensor", "n1", "unix:path:"+sensor))
	for _, row := range []struct {
		name  string
		flags []string
		want  string
	}{
		{"workload-api-tls13", nil, "TLS 1.3"},
		{"workload-api-tls12", []string{"-tls12"}, "TLS 1.2"},
		{"sds-tls13", []string{"-sds"}, "TLS 1.3"},
	} {
		addr := w.IP() + ":8443"
		common := append([]string{"-socket", "unix://" + node.Socket}, row.flags...)
		server := w.Run("hub-"+row.name, append(append([]string{hub}, common...), "-listen", addr, "-peer", world.ID("sensor")))
		server.Says("listening on")
		out, err := exec.Command(sensor, append(common, "-to", addr, "-peer", world.ID("hub"))...).CombinedOutput()
		if err != nil || !strings.Contains(string(out), world.ID("hub")+` said "hello" (`+row.want) {
			t.Errorf("%s: %v\n%s", row.name, err, out)
		}
		t.Logf("%s: %s", row.name, out)
		server.Stop()
	}
}
