package ca

import (
	"context"
	"crypto/x509"
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
	"github.com/spiffe/go-spiffe/v2/bundle/jwtbundle"
	"github.com/spiffe/go-spiffe/v2/bundle/spiffebundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/jwtsvid"
	"google.golang.org/protobuf/proto"

	nodev1 "github.com/legation-io/legation/api/node/v1"
	"github.com/legation-io/legation/internal/fault"
	"github.com/legation-io/legation/internal/ledger"
)

func TestAJWTSVIDIsAsTheStandardSays(t *testing.T) {
	a := newWorld(t).replica()
	before := time.Now().Truncate(time.Second)
	result, err := a.SignJWT(context.Background(), JWTRequest{
		ID: idOf("/ns/default/sa/web"), Audience: []string{"db", "cache"}, Node: "node-1", Entry: "default/web", Namespace: "default",
	})
	if err != nil {
		t.Fatal(err)
	}
	state, _ := a.State()
	bundle, err := jwtbundle.Parse(testTD, state.Bundle.Jwks)
	if err != nil {
		t.Fatal(err)
	}
	svid, err := jwtsvid.ParseAndValidate(result.Token, bundle, []string{"db"})
	if err != nil {
		t.Fatal(err)
	}
	if svid.ID != idOf("/ns/default/sa/web") || len(svid.Audience) != 2 || !svid.Expiry.Equal(result.ExpiresAt) {
		t.Errorf("SVID %+v", svid)
	}
	if got := result.ExpiresAt.Sub(before); got < 5*time.Minute || result.ExpiresAt.After(time.Now().Add(5*time.Minute+time.Second)) {
		t.Errorf("ends after %s, want 5m0s", got)
	}
	token, err := jwt.ParseSigned(result.Token, []jose.SignatureAlgorithm{jose.ES256})
	if err != nil {
		t.Fatal(err)
	}
	if h := token.Headers[0]; h.ExtraHeaders["typ"] != "JWT" || h.KeyID == "" || h.JSONWebKey != nil {
		t.Errorf("header %+v", h)
	}
	records, _ := a.journal.List(ledger.Filter{Kind: ledger.KindJWT})
	if len(records) != 1 || records[0].SPIFFEID != "spiffe://example.org/ns/default/sa/web" || len(records[0].Audience) != 2 || records[0].LifetimeReason == "" {
		t.Errorf("records %+v", records)
	}
	if _, err := a.Revoke(context.Background(), RevokeRequest{Serial: records[0].Serial}); !fault.Is(err, fault.Invalid) {
		t.Errorf("revoking a JWT by serial: %v, want invalid with the reason", err)
	}
}

func TestJWTRequestsThatAreRefused(t *testing.T) {
	a := newWorld(t).replica()
	for name, tc := range map[string]struct {
		req  JWTRequest
		want fault.Kind
	}{
		"no audience":          {JWTRequest{ID: idOf("/w")}, fault.Invalid},
		"an empty audience":    {JWTRequest{ID: idOf("/w"), Audience: []string{"a", ""}}, fault.Invalid},
		"too many audiences":   {JWTRequest{ID: idOf("/w"), Audience: strings.Split(strings.Repeat("a,", 40), ",")}, fault.Invalid},
		"another trust domain": {JWTRequest{ID: spiffeid.RequireFromString("spiffe://other.org/w"), Audience: []string{"a"}}, fault.Denied},
		"the system's own":     {JWTRequest{ID: idOf("/legation/server"), Audience: []string{"a"}}, fault.Denied},
		"no identity":          {JWTRequest{Audience: []string{"a"}}, fault.Invalid},
		"a negative lifetime":  {JWTRequest{ID: idOf("/w"), Audience: []string{"a"}, TTL: -1}, fault.Invalid},
	} {
		if r, err := a.SignJWT(context.Background(), tc.req); !fault.Is(err, tc.want) || r.Token != "" {
			t.Errorf("%s: %v, want %s", name, err, tc.want)
		}
	}
	if _, total := a.journal.List(ledger.Filter{}); total != 0 {
		t.Error("a refused request was recorded")
	}
	r, err := a.SignJWT(context.Background(), JWTRequest{ID: idOf("/w"), Audience: []string{"a"}, TTL: 24 * time.Hour})
	if err != nil || time.Until(r.ExpiresAt) > time.Hour {
		t.Errorf("a long lifetime: %v, %v; want it capped at 1 h", r.ExpiresAt, err)
	}
}

func TestAJWTSVIDSaysMoreAboutItsWorkload(t *testing.T) {
	w := newWorld(t)
	a := w.replica()
	a.cluster = "east-1"
	claims := func(req JWTRequest) map[string]any {
		t.Helper()
		result, err := a.SignJWT(context.Background(), req)
		if err != nil {
			t.Fatal(err)
		}
		token, err := jwt.ParseSigned(result.Token, []jose.SignatureAlgorithm{jose.ES256})
		if err != nil {
			t.Fatal(err)
		}
		all := map[string]any{}
		if err := token.Claims(a.jwtKey.Public(), &all); err != nil {
			t.Fatal(err)
		}
		return all
	}
	got := claims(JWTRequest{ID: idOf("/w"), Audience: []string{"a"}, Entry: "default/w", Ext: map[string]string{"legation.prev": "x", "team": "Müller"}})
	ext, _ := got["ext"].(map[string]any)
	if got["spiffe_id"] != "spiffe://example.org/w" || got["cluster"] != "east-1" || got["workload_name"] != "default/w" || len(ext) != 2 || ext["legation.prev"] != "x" || ext["team"] != "Müller" {
		t.Errorf("claims %v", got)
	}
	got = claims(JWTRequest{ID: idOf("/w"), Audience: []string{"a"}})
	if _, there := got["ext"]; there || got["spiffe_id"] != "spiffe://example.org/w" {
		t.Errorf("claims %v", got)
	}
	many := map[string]string{}
	for i := range 17 {
		many[string(rune('a'+i))] = "x"
	}
	for name, ext := range map[string]map[string]string{
		"seventeen":                 many,
		"no name":                   {"": "x"},
		"an upper-case name":        {"Team": "x"},
		"a name with a slash":       {"a/b": "x"},
		"a name of 65 bytes":        {strings.Repeat("a", 65): "x"},
		"more than 4,096 bytes":     {"a": strings.Repeat("x", 4000), "b": strings.Repeat("x", 97)},
		"a value that is not UTF-8": {"a": "\xff"},
		"sub":                       {"sub": "spiffe://example.org/admin"},
		"aud":                       {"aud": "x"},
		"exp":                       {"exp": "9999999999"},
		"spiffe_id":                 {"spiffe_id": "x"},
		"workload_name":             {"workload_name": "x"},
		"cluster":                   {"cluster": "x"},
	} {
		if r, err := a.SignJWT(context.Background(), JWTRequest{ID: idOf("/w"), Audience: []string{"a"}, Ext: ext}); !fault.Is(err, fault.Invalid) || r.Token != "" {
			t.Errorf("%s: %v, want invalid", name, err)
		}
	}
}

func TestTheBundleInSPIFFEFormat(t *testing.T) {
	a := newWorld(t).replica()
	bundle, err := spiffebundle.Parse(testTD, a.BundleJSON())
	if err != nil {
		t.Fatal(err)
	}
	_, root := a.Chain()
	if got := bundle.X509Authorities(); len(got) != 1 || !got[0].Equal(root) {
		t.Errorf("X.509 authorities %v", got)
	}
	if len(bundle.JWTAuthorities()) != 1 {
		t.Errorf("JWT authorities %v", bundle.JWTAuthorities())
	}
	if seq, ok := bundle.SequenceNumber(); !ok || seq != 1 {
		t.Errorf("sequence %d", seq)
	}
	if hint, ok := bundle.RefreshHint(); !ok || hint != 5*time.Minute {
		t.Errorf("refresh hint %s", hint)
	}
	for _, doc := range [][]byte{a.BundleJSON(), a.state.Get().Bundle.Jwks} {
		var set struct {
			Keys []map[string]any `json:"keys"`
		}
		if err := json.Unmarshal(doc, &set); err != nil {
			t.Fatal(err)
		}
		for _, key := range set.Keys {
			if key["d"] != nil || (key["use"] != "x509-svid" && key["use"] != "jwt-svid") {
				t.Errorf("key %v", key)
			}
		}
	}
}

func TestHeartbeatsFollowTheCRLAndVerify(t *testing.T) {
	w := newWorld(t)
	a := w.replica()
	a.beatEvery = 10 * time.Millisecond
	w.run(a)
	issuing, root := a.Chain()
	first := a.state.Get().Heartbeat
	if err := VerifyHeartbeat(first, issuing); err != nil || first.CrlNumber != 1 {
		t.Errorf("heartbeat %v: %v", first, err)
	}
	if err := VerifyHeartbeat(first, root); !fault.Is(err, fault.Denied) {
		t.Errorf("by another key: %v, want denied", err)
	}
	if cert, err := x509.ParseCertificate(first.Issuer); err != nil || !cert.Equal(issuing) {
		t.Error("the heartbeat does not carry its issuer")
	}
	if _, err := a.Revoke(context.Background(), RevokeRequest{ID: idOf("/w")}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "a heartbeat over the new CRL", func() bool { return a.state.Get().Heartbeat.CrlNumber == 2 })
	last := a.state.Get().Heartbeat
	forged, _ := proto.Clone(first).(*nodev1.Heartbeat)
	forged.CrlNumber = 2
	if err := VerifyHeartbeat(last, issuing); err != nil {
		t.Error(err)
	}
	if err := VerifyHeartbeat(forged, issuing); err == nil {
		t.Error("a changed heartbeat verifies")
	}
}

func TestAReplicaThatIsCutOffDoesNotVouch(t *testing.T) {
	w := newWorld(t)
	a, b := w.replica(), w.replica()
	if _, err := b.Revoke(context.Background(), RevokeRequest{ID: idOf("/w")}); err != nil {
		t.Fatal(err)
	}
	// a runs nothing and has heard of nothing: it looks before it signs.
	if err := a.beat(context.Background()); err != nil || a.state.Get().Heartbeat.CrlNumber != 2 {
		t.Errorf("heartbeat %v, %v", a.state.Get().Heartbeat, err)
	}
	at := a.state.Get().Heartbeat
	if err := w.store.Close(); err != nil {
		t.Fatal(err)
	}
	if err := a.beat(context.Background()); err == nil || a.state.Get().Heartbeat != at {
		t.Error("a replica without a store vouched for its CRL")
	}
}

func TestNothingIsIssuedWhileTheClockIsNotBelieved(t *testing.T) {
	ctx := context.Background()
	for _, jump := range []time.Duration{time.Hour, -time.Hour} {
		w := newWorld(t)
		a := w.replica()
		sign(t, a, requestFor(t, idOf("/w")))
		w.clock.Jump(jump)
		if r := a.SignX509(ctx, []X509Request{requestFor(t, idOf("/w"))})[0]; !fault.Is(r.Err, fault.Unavailable) || !strings.Contains(r.Err.Error(), "clock") {
			t.Errorf("jump %s: %v, want unavailable because of the clock", jump, r.Err)
		}
		if _, err := a.SignJWT(ctx, JWTRequest{ID: idOf("/w"), Audience: []string{"a"}}); !fault.Is(err, fault.Unavailable) {
			t.Errorf("jump %s: JWT: %v, want unavailable", jump, err)
		}
		w.clock.Jump(-jump)
		sign(t, a, requestFor(t, idOf("/w")))
	}
}
