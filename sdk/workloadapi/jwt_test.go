package workloadapi_test

import (
	"context"
	"crypto/ecdsa"
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
	"github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/jwtsvid"
	"go.uber.org/goleak"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/legation-io/legation/sdk/identity"
	"github.com/legation-io/legation/sdk/internal/fakeapi"
	"github.com/legation-io/legation/sdk/internal/pkitest"
	"github.com/legation-io/legation/sdk/jwtcheck"
	"github.com/legation-io/legation/sdk/workloadapi"
)

// issuer signs JWT-SVIDs of example.org.
type issuer struct {
	t   *testing.T
	key *ecdsa.PrivateKey
	kid string
}

func (i issuer) jwks() []byte {
	raw, err := json.Marshal(jose.JSONWebKeySet{Keys: []jose.JSONWebKey{{Key: &i.key.PublicKey, KeyID: i.kid, Use: "jwt-svid", Algorithm: "ES256"}}})
	if err != nil {
		i.t.Fatal(err)
	}
	return raw
}

func (i issuer) token(sub string, audience []string) string {
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.ES256, Key: jose.JSONWebKey{Key: i.key, KeyID: i.kid}}, (&jose.SignerOptions{}).WithType("JWT"))
	if err != nil {
		i.t.Fatal(err)
	}
	now := time.Now()
	token, err := jwt.Signed(signer).Claims(jwt.Claims{Subject: sub, Audience: audience, IssuedAt: jwt.NewNumericDate(now), Expiry: jwt.NewNumericDate(now.Add(5 * time.Minute))}).Serialize()
	if err != nil {
		i.t.Fatal(err)
	}
	return token
}

// answers what the Workload API says to FetchJWTSVID.
func (i issuer) answers(r *workload.JWTSVIDRequest) (*workload.JWTSVIDResponse, error) {
	resp := &workload.JWTSVIDResponse{}
	for _, id := range []string{"spiffe://example.org/a", "spiffe://example.org/b"} {
		if r.SpiffeId == "" || r.SpiffeId == id {
			resp.Svids = append(resp.Svids, &workload.JWTSVID{SpiffeId: id, Svid: i.token(id, r.Audience)})
		}
	}
	if len(resp.Svids) == 0 {
		return nil, status.Error(codes.PermissionDenied, "not yours")
	}
	return resp, nil
}

func bundles(i issuer) *workload.JWTBundlesResponse {
	return &workload.JWTBundlesResponse{Bundles: map[string][]byte{"spiffe://example.org": i.jwks()}}
}

func TestTheJWTSourceHasKeysAndTokens(t *testing.T) {
	defer goleak.VerifyNone(t, goleak.IgnoreCurrent())
	i := issuer{t, pkitest.NewKey(t), "one"}
	api, log := fakeapi.New(t), &fakeapi.Log{}
	api.Tokens(i.answers)
	api.AnswerJWT(bundles(i))
	api.Start(false)
	defer api.Stop()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	s, err := workloadapi.OpenJWTSource(ctx, quick(api, log))
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()

	// What it fetches, its keys verify, here and with go-spiffe.
	svid, err := s.FetchJWTSVID(ctx, jwtsvid.Params{Audience: "peer"})
	if err != nil || svid.ID.String() != "spiffe://example.org/a" {
		t.Fatalf("%+v, %v", svid, err)
	}
	keys, err := s.Keys()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := jwtcheck.New(jwtcheck.Config{}).Verify(keys, svid.Marshal(), "peer"); err != nil {
		t.Error(err)
	}
	if _, err := jwtsvid.ParseAndValidate(svid.Marshal(), s, []string{"peer"}); err != nil {
		t.Error(err)
	}
	b := spiffeid.RequireFromString("spiffe://example.org/b")
	if svid, err := s.FetchJWTSVID(ctx, jwtsvid.Params{Audience: "peer", Subject: b}); err != nil || svid.ID != b {
		t.Errorf("by subject: %+v, %v", svid, err)
	}
	if all, err := s.Client().FetchJWTSVIDs(ctx, jwtsvid.Params{Audience: "peer", ExtraAudiences: []string{"another"}}); err != nil || len(all) != 2 || len(all[0].Audience) != 2 {
		t.Errorf("all: %v, %v", all, err)
	}
	if _, err := s.FetchJWTSVID(ctx, jwtsvid.Params{Audience: "peer", Subject: spiffeid.RequireFromString("spiffe://example.org/c")}); status.Code(errors.Unwrap(err)) != codes.PermissionDenied {
		t.Errorf("another's: %v", err)
	}

	// Nonsense keeps the keys, rotation replaces them, equal answers do not.
	api.AnswerJWT(&workload.JWTBundlesResponse{Bundles: map[string][]byte{"spiffe://example.org": []byte("{")}})
	eventually(t, "nonsense is seen", func() bool { st, _, _ := s.State(); return st == workloadapi.Malformed })
	api.AnswerJWT(bundles(i))
	eventually(t, "it recovers", func() bool { st, _, _ := s.State(); return st == workloadapi.Current })
	if same, err := s.Keys(); err != nil || same != keys {
		t.Errorf("keys that did not change are others now: %v", err)
	}
	_, changed, _ := s.Bundles()
	api.AnswerJWT(bundles(issuer{t, pkitest.NewKey(t), "two"}))
	<-changed
	eventually(t, "keys that changed are others", func() bool { next, err := s.Keys(); return err == nil && next != keys })

	// Away: the keys hold.
	api.Stop()
	eventually(t, "it is away", func() bool { st, _, err := s.State(); return st == workloadapi.Unavailable && err != nil })
	if _, err := s.Keys(); err != nil {
		t.Error(err)
	}
	if log.Count("no JWT keys for us") > 3 {
		t.Error("one state is logged many times")
	}
}

func TestAJWTSourceWithoutKeysSaysWhy(t *testing.T) {
	api, log := fakeapi.New(t), &fakeapi.Log{}
	api.Start(false)
	api.Fail(codes.PermissionDenied, "no identity issued")
	ctx, refused := untilRefused(t, api)
	_, err := workloadapi.OpenJWTSource(ctx, quick(api, log))
	refused()
	if !errors.As(err, new(*identity.NotReady)) || !strings.Contains(err.Error(), "no identity issued") {
		t.Errorf("%v", err)
	}
}

func TestTokensThatWereNotAskedForAreRefused(t *testing.T) {
	i := issuer{t, pkitest.NewKey(t), "one"}
	for name, answer := range map[string]*workload.JWTSVIDResponse{
		"none":                {},
		"not a token":         {Svids: []*workload.JWTSVID{{SpiffeId: "spiffe://example.org/a", Svid: "x.y.z"}}},
		"announced otherwise": {Svids: []*workload.JWTSVID{{SpiffeId: "spiffe://example.org/b", Svid: i.token("spiffe://example.org/a", []string{"peer"})}}},
		"another audience":    {Svids: []*workload.JWTSVID{{SpiffeId: "spiffe://example.org/a", Svid: i.token("spiffe://example.org/a", []string{"evil"})}}},
		"another subject":     {Svids: []*workload.JWTSVID{{SpiffeId: "spiffe://example.org/b", Svid: i.token("spiffe://example.org/b", []string{"peer"})}}},
	} {
		t.Run(name, func(t *testing.T) {
			api := fakeapi.New(t)
			api.Start(false)
			api.Tokens(func(*workload.JWTSVIDRequest) (*workload.JWTSVIDResponse, error) { return answer, nil })
			c, err := workloadapi.NewClient(api.Addr())
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			if _, err := c.FetchJWTSVID(t.Context(), jwtsvid.Params{Audience: "peer", Subject: spiffeid.RequireFromString("spiffe://example.org/a")}); err == nil {
				t.Error("it was taken")
			}
		})
	}
}

func FuzzJWTBundles(f *testing.F) {
	f.Add("spiffe://example.org", []byte(`{"keys":[]}`))
	f.Add("example.org", []byte(`{"keys":[{"kty":"EC","kid":"a","crv":"P-256","x":"","y":""}]}`))
	f.Fuzz(func(t *testing.T, name string, jwks []byte) {
		set, keys, err := workloadapi.ParseJWTBundlesForTest(map[string][]byte{name: jwks})
		if err == nil && (set.Len() != 1 || keys == nil) {
			t.Error("an answer was half taken")
		}
	})
}
