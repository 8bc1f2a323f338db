package light_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"go.uber.org/goleak"
	"google.golang.org/grpc/codes"

	workloadv1 "github.com/legation-io/legation/sdk/api/workload/v1"
	"github.com/legation-io/legation/sdk/chaincheck"
	"github.com/legation-io/legation/sdk/identity"
	"github.com/legation-io/legation/sdk/internal/fakeapi"
	"github.com/legation-io/legation/sdk/internal/pkitest"
	"github.com/legation-io/legation/sdk/light"
)

func quick(api *fakeapi.Server, log *fakeapi.Log) light.Config {
	return light.Config{
		Addr: api.Addr(), Backoff: light.Backoff{Min: time.Millisecond, Max: 10 * time.Millisecond},
		Logger: slog.New(slog.NewTextHandler(log, nil)),
	}
}

func run(t *testing.T, c light.Config) *light.Source {
	t.Helper()
	s, err := light.NewSource(c)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- s.Run(t.Context()) }()
	t.Cleanup(func() {
		s.Close()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	return s
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("waited a minute until %s", what)
		}
	}
}

func snapshot(t *testing.T, s identity.Source) *identity.Snapshot {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	snap, err := identity.Wait(ctx, s)
	if err != nil {
		t.Fatal(err)
	}
	return snap
}

func judge(t *testing.T, trust *chaincheck.Trust, peer [][]byte) error {
	t.Helper()
	_, err := chaincheck.VerifyLeafRaw(peer, chaincheck.Params{Roots: trust.Roots, CRLs: trust.CRLs, Usage: chaincheck.Server})
	return err
}

func TestOneAnswerIsAnIdentity(t *testing.T) {
	defer goleak.VerifyNone(t, goleak.IgnoreCurrent())
	for name, extensions := range map[string]bool{"Legation's socket": true, "SPIRE's socket": false} {
		t.Run(name, func(t *testing.T) {
			d := pkitest.New(t, "example.org", nil)
			api := fakeapi.New(t)
			api.Start(extensions)
			api.Revoke(&workloadv1.RevocationSet{})
			own := d.Issue("/a", nil)
			api.Answer(fakeapi.X509(t, d, own))
			s, sizes, err := light.FetchSizes(t.Context(), light.Config{Addr: api.Addr()})
			if err != nil {
				t.Fatal(err)
			}
			if s.ID != d.ID("/a") || !s.Certificate.Leaf.Equal(own.Leaf) || (s.Trust.Denied != nil) != extensions {
				t.Errorf("%+v", s)
			}
			if err := judge(t, s.Trust, d.Issue("/peer", nil).Certificate); err != nil {
				t.Errorf("a good peer: %v", err)
			}
			if sizes.Wire == 0 || sizes.DER >= sizes.PEM {
				t.Errorf("sizes %+v", sizes)
			}
			t.Setenv("SPIFFE_ENDPOINT_SOCKET", api.Addr())
			if _, err := light.Fetch(t.Context(), light.Config{}); err != nil {
				t.Error(err)
			}
			api.Stop()
		})
	}
}

func TestFetchSaysWhyThereIsNone(t *testing.T) {
	defer goleak.VerifyNone(t, goleak.IgnoreCurrent())
	d := pkitest.New(t, "example.org", nil)
	good := func(api *fakeapi.Server) { api.Answer(fakeapi.X509(t, d, d.Issue("/a", nil))) }
	for name, row := range map[string]struct {
		prepare func(*fakeapi.Server)
		change  func(*light.Config)
		want    string
	}{
		"nobody listens":      {func(api *fakeapi.Server) { api.Stop() }, nil, "no such file"},
		"no identity":         {func(api *fakeapi.Server) { api.Fail(codes.PermissionDenied, "no identity issued") }, nil, "PermissionDenied: no identity issued"},
		"not this identity":   {good, func(c *light.Config) { c.SPIFFEID = spiffeid.RequireFromString("spiffe://example.org/b") }, "spiffe://example.org/a"},
		"no answer in time":   {func(*fakeapi.Server) {}, func(c *light.Config) { c.Timeout = 50 * time.Millisecond }, "deadline exceeded"},
		"an answer too large": {good, func(c *light.Config) { c.MaxMessage = 100 }, "MaxMessage"},
		"an answer that makes no sense": {func(api *fakeapi.Server) {
			r := fakeapi.X509(t, d, d.Issue("/a", nil))
			r.Svids[0].X509Svid = []byte("junk")
			api.Answer(r)
		}, nil, "SVID 0 of the answer"},
		"an address that cannot be": {good, func(c *light.Config) { c.Addr = "http://x" }, "http://x"},
		"a limit that cannot be":    {good, func(c *light.Config) { c.MaxMessage = -1 }, "MaxMessage"},
		"an identity twice": {good, func(c *light.Config) {
			c.SPIFFEID, c.Pick = d.ID("/a"), nil
			c.Addr = "unix://relative/path"
		}, "unix:///absolute/path"},
	} {
		t.Run(name, func(t *testing.T) {
			api := fakeapi.New(t)
			api.Start(true)
			row.prepare(api)
			c := light.Config{Addr: api.Addr()}
			if row.change != nil {
				row.change(&c)
			}
			_, err := light.Fetch(t.Context(), c)
			if err == nil || !strings.Contains(err.Error(), row.want) {
				t.Errorf("%v does not say %q", err, row.want)
			}
			var status *light.StatusError
			if name == "no identity" && (!errors.As(err, &status) || status.Code != light.CodePermissionDenied) {
				t.Errorf("%v has no code", err)
			}
			api.Stop()
		})
	}
	t.Run("what listens is no gRPC server", func(t *testing.T) {
		path := t.TempDir() + "/s"
		l, err := net.Listen("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		go func() {
			if c, err := l.Accept(); err == nil {
				_, _ = c.Read(make([]byte, 4096))
				_, _ = c.Write([]byte("HTTP/1.1 400 Bad Request\r\n\r\n"))
				_, _ = io.Copy(io.Discard, c)
				c.Close()
			}
		}()
		_, err = light.Fetch(t.Context(), light.Config{Addr: "unix://" + path})
		var broken *light.ProtocolError
		if !errors.As(err, &broken) {
			t.Errorf("%v", err)
		}
	})
	t.Run("the caller waits no longer", func(t *testing.T) {
		api := fakeapi.New(t)
		api.Start(true)
		ctx, cancel := context.WithCancel(t.Context())
		time.AfterFunc(10*time.Millisecond, cancel)
		if _, err := light.Fetch(ctx, light.Config{Addr: api.Addr()}); !errors.Is(err, context.Canceled) {
			t.Errorf("%v", err)
		}
		api.Stop()
	})
}

func TestTheSourceFollows(t *testing.T) {
	defer goleak.VerifyNone(t, goleak.IgnoreCurrent())
	d := pkitest.New(t, "example.org", nil)
	api, log := fakeapi.New(t), &fakeapi.Log{}
	api.Start(true)
	defer api.Stop()
	api.Revoke(&workloadv1.RevocationSet{})
	api.Answer(fakeapi.X509(t, d, d.Issue("/a", nil)))
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	s, err := light.Open(ctx, quick(api, log))
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	peer := d.Issue("/peer", nil)
	if err := judge(t, snapshot(t, s).Trust, peer.Certificate); err != nil {
		t.Fatal(err)
	}
	_, changed, _ := s.Current()
	api.Revoke(&workloadv1.RevocationSet{Revocations: []*workloadv1.Revocation{{SpiffeId: d.ID("/peer").String()}}})
	<-changed
	eventually(t, "the denial is there", func() bool { return s.Status().Denials == 1 })
	d.Revoke(peer.Leaf)
	next := d.Issue("/a", nil)
	api.Answer(fakeapi.X509(t, d, next))
	eventually(t, "the renewed certificate and the list are there", func() bool {
		snap := snapshot(t, s)
		return snap.Certificate.Leaf.Equal(next.Leaf) && errors.Is(judge(t, snap.Trust, peer.Certificate), &chaincheck.Error{Cause: chaincheck.Revoked})
	})
	if sizes := s.Sizes(); sizes.Wire == 0 {
		t.Error("no sizes")
	}

	// Nonsense keeps it; the agent's restart too.
	bad := fakeapi.X509(t, d, next)
	bad.Svids[0].X509Svid = []byte("junk")
	api.Answer(bad)
	eventually(t, "nonsense is seen", func() bool { st := s.Status(); return st.State == light.Malformed && st.Malformed == 1 })
	for range 3 {
		api.Stop()
		eventually(t, "it is seen to be away", func() bool { return s.Status().State == light.Unavailable })
		if snap := snapshot(t, s); !snap.Certificate.Leaf.Equal(next.Leaf) || snap.Trust.Denied == nil {
			t.Error("the last answer is not served any more")
		}
		api.Answer(fakeapi.X509(t, d, next))
		api.Start(true)
		eventually(t, "it is seen to be back", func() bool { st, _, err := s.State(); return st == light.Current && err == nil })
	}
	if err := s.Run(ctx); err == nil {
		t.Error("a second Run ran")
	}
}

func TestNoIdentityIsAStateNotAnEnd(t *testing.T) {
	d := pkitest.New(t, "example.org", nil)
	api, log := fakeapi.New(t), &fakeapi.Log{}
	api.Start(false)
	api.Fail(codes.PermissionDenied, "no identity issued")
	s := run(t, quick(api, log))
	calls := api.Calls()
	eventually(t, "it asked again and again", func() bool { return api.Calls() > calls+20 })
	if st, _, err := s.State(); st != light.NoIdentity || !strings.Contains(err.Error(), "no identity issued") {
		t.Errorf("%s, %v", st, err)
	}
	if n := log.Count("nothing for us"); n != 1 {
		t.Errorf("one state is logged %d times", n)
	}
	api.Answer(fakeapi.X509(t, d, d.Issue("/a", nil)))
	snapshot(t, s)
}

func TestAnAgentThatRefusesIsNotAskedAgain(t *testing.T) {
	api, log := fakeapi.New(t), &fakeapi.Log{}
	api.Start(false)
	api.Fail(codes.InvalidArgument, "not like this")
	s, err := light.NewSource(quick(api, log))
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- s.Run(t.Context()) }()
	eventually(t, "the state says so", func() bool { return s.Status().State == light.Unavailable })
	s.Close()
	if err := <-done; err == nil || api.Calls() != 1 {
		t.Errorf("Run ended with %v after %d calls (SPIFFE Workload Endpoint 6: not to be retried)", err, api.Calls())
	}
}

func TestLargeAnswersFlow(t *testing.T) {
	d := pkitest.New(t, "example.org", nil)
	api, log := fakeapi.New(t), &fakeapi.Log{}
	api.Start(true)
	r := fakeapi.X509(t, d, d.Issue("/a", nil))
	for range 3 { // 3.6 MB of lists that nobody can read
		r.Crl = append(r.Crl, make([]byte, 1_200_000))
	}
	api.Answer(r)
	s := run(t, quick(api, log))
	snapshot(t, s)
	for range 5 { // beyond every window, several times
		next := fakeapi.X509(t, d, d.Issue("/a", nil))
		next.Crl = r.Crl
		api.Answer(next)
		eventually(t, "the next one is there", func() bool {
			return bytes.Equal(snapshot(t, s).Certificate.Certificate[0], next.Svids[0].X509Svid[:len(snapshot(t, s).Certificate.Certificate[0])])
		})
	}
	next := fakeapi.X509(t, d, d.Issue("/a", nil))
	next.Crl = append(r.Crl, make([]byte, 1_200_000))
	api.Answer(next)
	eventually(t, "one beyond the cap is refused", func() bool {
		st, _, err := s.State()
		return st == light.Unavailable && strings.Contains(err.Error(), "MaxMessage")
	})
	snapshot(t, s)
}
