package workloadapi

import (
	"strings"
	"testing"
	"time"

	nodev1 "github.com/legation-io/legation/api/node/v1"
	workloadv1 "github.com/legation-io/legation/sdk/api/workload/v1"
	"github.com/legation-io/legation/sdk/jwtcheck"
	sdk "github.com/legation-io/legation/sdk/workloadapi"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

func (a *agent) tokens() workloadv1.TokensClient {
	conn, err := sdk.Dial("unix://" + a.socket)
	if err != nil {
		a.t.Fatal(err)
	}
	a.t.Cleanup(func() { conn.Close() })
	return workloadv1.NewTokensClient(conn)
}

func TestATokenCarriesTheClaimsAskedFor(t *testing.T) {
	internal := &nodev1.Entry{Name: "default/zz", Namespace: "default", SpiffeId: "spiffe://example.org/ns/default/sa/zz", Selectors: []string{selfSelector()}}
	a := serve(t, Limits{}, webEntry(), internal)
	td := spiffeid.RequireTrustDomainFromString(domain)
	bundle, err := jwtcheck.ParseBundle(td, a.ca.bundle(t).Jwks)
	if err != nil {
		t.Fatal(err)
	}
	keys, verifier := jwtcheck.NewKeys(bundle), jwtcheck.New(jwtcheck.Config{})
	for _, tc := range []struct{ ask, want string }{{"", webEntry().SpiffeId}, {internal.SpiffeId, internal.SpiffeId}} {
		r, err := a.tokens().FetchJWTSVID(secure(t), &workloadv1.FetchJWTSVIDRequest{Audience: []string{"db"}, SpiffeId: tc.ask, Ext: map[string]string{"team": "a"}})
		if err != nil {
			t.Fatal(err)
		}
		token, err := verifier.Verify(keys, r.Token, "db")
		if err != nil {
			t.Fatal(err)
		}
		if ext, _ := token.Claim("ext"); token.ID.String() != tc.want || ext.(map[string]any)["team"] != "a" || token.ExpiresAt.Unix() != r.ExpiresAtUnix || time.Until(token.ExpiresAt) <= 0 {
			t.Errorf("%+v", token)
		}
	}
}

func TestTokensThatAreNotSigned(t *testing.T) {
	a := serve(t, Limits{}, webEntry(), &nodev1.Entry{Name: "default/other", SpiffeId: "spiffe://example.org/ns/default/sa/other", Selectors: []string{"unix:uid:4294967294"}})
	many := map[string]string{}
	for i := range 17 {
		many[string(rune('a'+i))] = ""
	}
	for name, tc := range map[string]struct {
		req  *workloadv1.FetchJWTSVIDRequest
		want codes.Code
	}{
		"without an audience":          {&workloadv1.FetchJWTSVIDRequest{}, codes.InvalidArgument},
		"an empty audience":            {&workloadv1.FetchJWTSVIDRequest{Audience: []string{""}}, codes.InvalidArgument},
		"seventeen audiences":          {&workloadv1.FetchJWTSVIDRequest{Audience: strings.Split(strings.Repeat("a,", 16)+"a", ",")}, codes.InvalidArgument},
		"a long audience":              {&workloadv1.FetchJWTSVIDRequest{Audience: []string{strings.Repeat("a", 2049)}}, codes.InvalidArgument},
		"an identity that is none":     {&workloadv1.FetchJWTSVIDRequest{Audience: []string{"a"}, SpiffeId: "web"}, codes.InvalidArgument},
		"an identity without end":      {&workloadv1.FetchJWTSVIDRequest{Audience: []string{"a"}, SpiffeId: "spiffe://example.org/" + strings.Repeat("a", 2048)}, codes.InvalidArgument},
		"an identity of another":       {&workloadv1.FetchJWTSVIDRequest{Audience: []string{"a"}, SpiffeId: "spiffe://example.org/ns/default/sa/other"}, codes.PermissionDenied},
		"an identity of nobody":        {&workloadv1.FetchJWTSVIDRequest{Audience: []string{"a"}, SpiffeId: "spiffe://example.org/nobody"}, codes.PermissionDenied},
		"seventeen claims":             {&workloadv1.FetchJWTSVIDRequest{Audience: []string{"a"}, Ext: many}, codes.InvalidArgument},
		"claims of more than 4 kB":     {&workloadv1.FetchJWTSVIDRequest{Audience: []string{"a"}, Ext: map[string]string{"a": strings.Repeat("x", 4097)}}, codes.InvalidArgument},
		"a claim with a name too long": {&workloadv1.FetchJWTSVIDRequest{Audience: []string{"a"}, Ext: map[string]string{strings.Repeat("x", 65): ""}}, codes.InvalidArgument},
	} {
		r, err := a.tokens().FetchJWTSVID(secure(t), tc.req)
		if status.Code(err) != tc.want || r.GetToken() != "" {
			t.Errorf("%s: %v, want %s", name, err, tc.want)
		}
		if n := len(status.Convert(err).Message()); n > 1024 {
			t.Errorf("%s: the answer, which is logged, has %d bytes", name, n)
		}
	}
	stranger := serve(t, Limits{})
	if _, err := stranger.tokens().FetchJWTSVID(secure(t), &workloadv1.FetchJWTSVIDRequest{Audience: []string{"a"}}); status.Code(err) != codes.PermissionDenied {
		t.Errorf("without an identity: %v", err)
	}
}

func TestAnOldControlPlaneMakesItUnimplemented(t *testing.T) {
	a := serve(t, Limits{}, webEntry())
	a.ca.old = true
	_, err := a.tokens().FetchJWTSVID(secure(t), &workloadv1.FetchJWTSVIDRequest{Audience: []string{"a"}, Ext: map[string]string{"a": "1"}})
	if status.Code(err) != codes.Unimplemented || !strings.Contains(err.Error(), "upgrade") {
		t.Errorf("%v, want unimplemented with what to do", err)
	}
	if _, err := a.tokens().FetchJWTSVID(secure(t), &workloadv1.FetchJWTSVIDRequest{Audience: []string{"a"}}); err != nil {
		t.Errorf("without further claims: %v", err)
	}
}
