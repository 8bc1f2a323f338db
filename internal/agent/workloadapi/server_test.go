package workloadapi

import (
	"bytes"
	"context"
	"crypto/x509"
	"strings"
	"testing"
	"time"

	nodev1 "github.com/legation-io/legation/api/node/v1"
	"github.com/legation-io/legation/internal/agent/upstream"
	pb "github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/jwtsvid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	spiffe "github.com/spiffe/go-spiffe/v2/workloadapi"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

func TestGoSpiffeClient(t *testing.T) {
	a := serve(t, Limits{}, webEntry())
	ctx := secure(t)
	source, err := spiffe.NewX509Source(ctx, spiffe.WithClientOptions(spiffe.WithAddr("unix://"+a.socket)))
	if err != nil {
		t.Fatal(err)
	}
	defer source.Close()
	first, err := source.GetX509SVID()
	if err != nil || first.ID.String() != webEntry().SpiffeId || first.Hint != "internal" {
		t.Fatalf("%v %v", first, err)
	}
	if _, _, err := x509svid.Verify(first.Certificates, source); err != nil {
		t.Errorf("the SVID does not verify against the bundle: %v", err)
	}

	// A revoked certificate is replaced on the open stream.
	updated := source.Updated()
	a.change(func(v *upstream.View) {
		v.Revocations = map[string]*nodev1.Revocation{"r": {Id: "r", Serials: []string{first.Certificates[0].SerialNumber.Text(16)}}}
	})
	select {
	case <-updated:
	case <-ctx.Done():
		t.Fatal("no update after a revocation")
	}
	if second, err := source.GetX509SVID(); err != nil || second.Certificates[0].SerialNumber.Cmp(first.Certificates[0].SerialNumber) == 0 {
		t.Errorf("still the revoked one, %v", err)
	}

	client, err := spiffe.New(ctx, spiffe.WithAddr("unix://"+a.socket))
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	token, err := client.FetchJWTSVID(ctx, jwtsvid.Params{Audience: "db", Subject: spiffeid.RequireFromString(webEntry().SpiffeId)})
	if err != nil {
		t.Fatal(err)
	}
	bundles, err := client.FetchJWTBundles(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := jwtsvid.ParseAndValidate(token.Marshal(), bundles, []string{"db"}); err != nil {
		t.Errorf("the token does not verify against the bundle: %v", err)
	}
	if got, err := client.ValidateJWTSVID(ctx, token.Marshal(), "db"); err != nil || got.ID != token.ID {
		t.Errorf("validate: %v %v", got, err)
	}
	if _, err := client.ValidateJWTSVID(ctx, token.Marshal(), "other"); status.Code(err) != codes.InvalidArgument {
		t.Errorf("validate for another audience: %v", err)
	}
	if x, err := client.FetchX509Bundles(ctx); err != nil || x.Len() != 1 {
		t.Errorf("bundles: %v %v", x, err)
	}
}

func TestCRLsAndForeignBundlesArePushed(t *testing.T) {
	a := serve(t, Limits{}, webEntry())
	svids, err := a.client().FetchX509SVID(secure(t), &pb.X509SVIDRequest{})
	if err != nil {
		t.Fatal(err)
	}
	bundles, err := a.client().FetchX509Bundles(secure(t), &pb.X509BundlesRequest{})
	if err != nil {
		t.Fatal(err)
	}
	one, err := svids.Recv()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := bundles.Recv(); err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(one.Svids[0].X509Svid)
	if err != nil {
		t.Fatal(err)
	}
	foreign := newAuthority(t, "partner.example", "p")
	crl := a.ca.crl(t, 2, leaf.SerialNumber.Int64())
	a.change(func(v *upstream.View) {
		v.CRLs["default"] = crl
		v.Bundles["partner.example"] = foreign.bundle(t)
	})
	two, err := svids.Recv()
	if err != nil {
		t.Fatal(err)
	}
	if len(two.Crl) != 1 || !bytes.Equal(two.Crl[0], crl.Lists[0]) || !bytes.Equal(two.FederatedBundles["spiffe://partner.example"], foreign.root.Raw) {
		t.Errorf("X509SVIDResponse: %d CRLs, foreign bundles %v", len(two.Crl), two.FederatedBundles)
	}
	got, err := bundles.Recv()
	if err != nil {
		t.Fatal(err)
	}
	if len(got.Crl) != 1 || len(got.Bundles) != 2 {
		t.Errorf("X509BundlesResponse: %d CRLs, %d bundles", len(got.Crl), len(got.Bundles))
	}
	eventually(t, "both are known to have CRL 2", func() bool {
		a.mu.Lock()
		defer a.mu.Unlock()
		n := 0
		for who, crl := range a.delivered {
			if crl["default"] == 2 && (strings.HasSuffix(who, webEntry().SpiffeId) || strings.HasSuffix(who, " ")) {
				n++
			}
		}
		return n == 2
	})
}

func TestA23WithoutTheSecurityHeaderNothingIsAnswered(t *testing.T) {
	a := serve(t, Limits{}, webEntry())
	c := a.client()
	for name, md := range map[string]metadata.MD{
		"none":          {},
		"false":         {"workload.spiffe.io": {"false"}},
		"true twice":    {"workload.spiffe.io": {"true", "true"}},
		"another case":  {"workload.spiffe.io": {"TRUE"}},
		"another name":  {"x-workload.spiffe.io": {"true"}},
		"with a suffix": {"workload.spiffe.io": {"true "}},
	} {
		ctx := metadata.NewOutgoingContext(secure(t), md)
		calls := map[string]func() error{
			"FetchX509SVID": func() error {
				s, err := c.FetchX509SVID(ctx, &pb.X509SVIDRequest{})
				if err == nil {
					_, err = s.Recv()
				}
				return err
			},
			"FetchX509Bundles": func() error {
				s, err := c.FetchX509Bundles(ctx, &pb.X509BundlesRequest{})
				if err == nil {
					_, err = s.Recv()
				}
				return err
			},
			"FetchJWTBundles": func() error {
				s, err := c.FetchJWTBundles(ctx, &pb.JWTBundlesRequest{})
				if err == nil {
					_, err = s.Recv()
				}
				return err
			},
			"FetchJWTSVID": func() error {
				_, err := c.FetchJWTSVID(ctx, &pb.JWTSVIDRequest{Audience: []string{"a"}})
				return err
			},
			"ValidateJWTSVID": func() error {
				_, err := c.ValidateJWTSVID(ctx, &pb.ValidateJWTSVIDRequest{Audience: "a", Svid: "x"})
				return err
			},
		}
		for method, call := range calls {
			if name == "with a suffix" && status.Code(call()) == codes.OK {
				continue // HTTP/2 trims it on the way
			}
			if err := call(); status.Code(err) != codes.InvalidArgument || !strings.Contains(err.Error(), "security header") {
				t.Errorf("%s, header %s: %v", method, name, err)
			}
		}
	}
}

func TestACallerWithoutAnEntryIsDeniedWithTheReason(t *testing.T) {
	e := webEntry()
	e.Selectors = append(e.Selectors, "unix:path:/usr/bin/another")
	a := serve(t, Limits{}, e)
	c, ctx := a.client(), secure(t)
	check := func(method string, err error) {
		t.Helper()
		if status.Code(err) != codes.PermissionDenied || !strings.Contains(err.Error(), "default/web") || !strings.Contains(err.Error(), "/usr/bin/another") {
			t.Errorf("%s: %v", method, err)
		}
	}
	s, err := c.FetchX509SVID(ctx, &pb.X509SVIDRequest{})
	if err != nil {
		t.Fatal(err)
	}
	_, err = s.Recv()
	check("FetchX509SVID", err)
	_, err = c.FetchJWTSVID(ctx, &pb.JWTSVIDRequest{Audience: []string{"a"}})
	check("FetchJWTSVID", err)
	b, err := c.FetchX509Bundles(ctx, &pb.X509BundlesRequest{})
	if err != nil {
		t.Fatal(err)
	}
	_, err = b.Recv()
	check("FetchX509Bundles", err)

	t.Run("and is served the moment it has one", func(t *testing.T) {
		s, err := c.FetchX509SVID(secure(t), &pb.X509SVIDRequest{})
		if err != nil {
			t.Fatal(err)
		}
		a.change(func(v *upstream.View) { v.Entries["default/web"] = webEntry() })
		if _, err := s.Recv(); err != nil {
			t.Fatal(err)
		}
		a.change(func(v *upstream.View) { delete(v.Entries, "default/web") })
		if _, err := s.Recv(); status.Code(err) != codes.PermissionDenied {
			t.Errorf("after the entry went: %v", err)
		}
	})
}

func TestFetchJWTSVIDChecksWhatIsAsked(t *testing.T) {
	a := serve(t, Limits{}, webEntry())
	c := a.client()
	for _, test := range []struct {
		name string
		req  *pb.JWTSVIDRequest
		code codes.Code
	}{
		{"no audience", &pb.JWTSVIDRequest{}, codes.InvalidArgument},
		{"an empty audience", &pb.JWTSVIDRequest{Audience: []string{"a", ""}}, codes.InvalidArgument},
		{"a giant audience", &pb.JWTSVIDRequest{Audience: []string{strings.Repeat("a", 5000)}}, codes.InvalidArgument},
		{"too many audiences", &pb.JWTSVIDRequest{Audience: strings.Split(strings.Repeat("a,", 40)+"a", ",")}, codes.InvalidArgument},
		{"a SPIFFE ID that is none", &pb.JWTSVIDRequest{Audience: []string{"a"}, SpiffeId: "web"}, codes.InvalidArgument},
		{"another's SPIFFE ID", &pb.JWTSVIDRequest{Audience: []string{"a"}, SpiffeId: "spiffe://example.org/ns/default/sa/admin"}, codes.PermissionDenied},
		{"its own", &pb.JWTSVIDRequest{Audience: []string{"a"}, SpiffeId: webEntry().SpiffeId}, codes.OK},
		{"all of its own", &pb.JWTSVIDRequest{Audience: []string{"a"}}, codes.OK},
	} {
		r, err := c.FetchJWTSVID(secure(t), test.req)
		if status.Code(err) != test.code {
			t.Errorf("%s: %v", test.name, err)
		}
		if err == nil && (len(r.Svids) != 1 || r.Svids[0].SpiffeId != webEntry().SpiffeId) {
			t.Errorf("%s: %v", test.name, r)
		}
	}
}

func TestOpenCallsAreLimited(t *testing.T) {
	for name, limits := range map[string]Limits{"per process": {PerProcess: 3}, "per uid": {PerUID: 3}} {
		t.Run(name, func(t *testing.T) {
			a := serve(t, limits, webEntry())
			ctx, cancel := context.WithCancel(secure(t))
			for range 3 {
				s, err := a.client().FetchX509SVID(ctx, &pb.X509SVIDRequest{})
				if err != nil {
					t.Fatal(err)
				}
				if _, err := s.Recv(); err != nil {
					t.Fatal(err)
				}
			}
			over := func() error {
				s, err := a.client().FetchX509SVID(secure(t), &pb.X509SVIDRequest{})
				if err == nil {
					_, err = s.Recv()
				}
				return err
			}
			if err := over(); status.Code(err) != codes.ResourceExhausted || !strings.Contains(err.Error(), "limited") {
				t.Errorf("the fourth: %v", err)
			}
			cancel()
			eventually(t, "there is room again", func() bool { return over() == nil })
		})
	}
}

func BenchmarkWarmFirstSVID(b *testing.B) {
	a := serve(b, Limits{PerUID: 1 << 20, PerProcess: 1 << 20}, webEntry())
	first := func() time.Duration {
		begun := time.Now()
		c, done := dial(b, a.socket)
		defer done()
		ctx, cancel := context.WithCancel(metadata.AppendToOutgoingContext(context.Background(), "workload.spiffe.io", "true"))
		defer cancel()
		s, err := c.FetchX509SVID(ctx, &pb.X509SVIDRequest{})
		if err != nil {
			b.Fatal(err)
		}
		if _, err := s.Recv(); err != nil {
			b.Fatal(err)
		}
		return time.Since(begun)
	}
	first()
	var all []time.Duration
	for b.Loop() {
		all = append(all, first())
	}
	report(b, all)
}
