package sds

import (
	"bytes"
	"context"
	"crypto/x509"
	"errors"
	"maps"
	"slices"
	"testing"

	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	"github.com/google/go-cmp/cmp"
	"github.com/legation-io/legation/internal/agent/svid"
	"github.com/legation-io/legation/internal/distribute"
	"google.golang.org/protobuf/proto"
)

func named(t testing.TB, list []*distribute.Resource) map[string]*tlsv3.Secret {
	t.Helper()
	out := map[string]*tlsv3.Secret{}
	for _, r := range list {
		s := &tlsv3.Secret{}
		if err := proto.Unmarshal(r.Body, s); err != nil {
			t.Fatal(err)
		}
		if s.Name != r.Name || r.Type != TypeSecret || out[r.Name] != nil {
			t.Errorf("resource %s %s holds secret %s", r.Type, r.Name, s.Name)
		}
		out[r.Name] = s
	}
	return out
}

func TestSecretNames(t *testing.T) {
	p := newPKI(t)
	a, b := p.svid("/a", "retail-service-cert", "default"), p.svid("/b", "retail-service-cert", "b-cert", "spiffe://example.org/a")
	trust := p.trust()
	trust.Roots["other.org"], trust.CRLs["other.org"] = trust.Roots[td], [][]byte{trust.CRLs[td][0]}
	trust.Roots["nocrl.org"] = trust.Roots[td]
	own := []string{"ROOTCA", "spiffe://example.org", "spiffe://example.org/validation_context", "ALL",
		"spiffe://other.org", "spiffe://other.org/validation_context"}
	for name, c := range map[string]struct {
		update *svid.Update
		names  SecretNames
		want   []string
	}{
		"nothing yet": {nil, SecretNames{}, nil},
		"each SVID has its ID and its entry's names, the first is the default": {
			&svid.Update{SVIDs: []*svid.SVID{a, b}}, SecretNames{},
			[]string{"default", "spiffe://example.org/a", "spiffe://example.org/b", "retail-service-cert", "b-cert"}},
		"each trust domain with a CRL has its context": {&svid.Update{Trust: trust}, SecretNames{}, own},
		"without a CRL only when asked for": {&svid.Update{Trust: trust}, SecretNames{WithoutCRL: true},
			append(own, "spiffe://nocrl.org", "spiffe://nocrl.org/validation_context")},
		"the reserved names can be others": {&svid.Update{SVIDs: []*svid.SVID{a}, Trust: p.trust()}, SecretNames{Default: "d", Bundle: "B", All: "A"},
			[]string{"d", "B", "A", "default", "retail-service-cert", "spiffe://example.org/a", "spiffe://example.org", "spiffe://example.org/validation_context"}},
	} {
		t.Run(name, func(t *testing.T) {
			got := named(t, Secrets(c.update, c.names))
			if d := cmp.Diff(slices.Sorted(slices.Values(c.want)), slices.Sorted(maps.Keys(got))); d != "" {
				t.Error(d)
			}
		})
	}
	got := named(t, Secrets(&svid.Update{SVIDs: []*svid.SVID{a, b}, Trust: trust}, SecretNames{}))
	for name, owner := range map[string]*svid.SVID{"default": a, "retail-service-cert": a, "spiffe://example.org/a": a, "b-cert": b} {
		if chain := pemBlocks(t, "CERTIFICATE", got[name].GetTlsCertificate().GetCertificateChain().GetInlineBytes()); !slices.EqualFunc(chain, owner.Chain, bytes.Equal) {
			t.Errorf("%s has another chain", name)
		}
		key := pemBlocks(t, "PRIVATE KEY", got[name].GetTlsCertificate().GetPrivateKey().GetInlineBytes())
		if _, err := x509.ParsePKCS8PrivateKey(key[0]); err != nil || !bytes.Equal(key[0], owner.KeyPKCS8) {
			t.Errorf("%s has another key: %v", name, err)
		}
	}
	for name, crls := range map[string]int{"ROOTCA": 2, "spiffe://other.org": 1, "ALL": 2} {
		v := got[name].GetValidationContext()
		if n := len(pemBlocks(t, "X509 CRL", v.GetCrl().GetInlineBytes())); n != crls {
			t.Errorf("%s has %d CRLs, not %d", name, n, crls)
		}
		if n := len(pemBlocks(t, "CERTIFICATE", v.GetTrustedCa().GetInlineBytes())); n != 1 {
			t.Errorf("%s has %d roots", name, n)
		}
		if v.GetCustomValidatorConfig() != nil || len(v.GetMatchTypedSubjectAltNames()) != 0 {
			t.Errorf("%s is not for the plain default validator: %v", name, v)
		}
	}
}

func TestSecretsOfEqualContentHaveEqualVersions(t *testing.T) {
	p := newPKI(t)
	s, trust := p.svid("/a"), p.trust()
	turned := *trust
	turned.CRLs = map[string][][]byte{td: {trust.CRLs[td][1], trust.CRLs[td][0], trust.CRLs[td][1]}}
	versions := func(t *svid.Trust) (out []string) {
		for _, r := range Secrets(&svid.Update{SVIDs: []*svid.SVID{s}, Trust: t}, SecretNames{}) {
			out = append(out, r.Name+" "+r.Version)
		}
		return out
	}
	if d := cmp.Diff(versions(trust), versions(&turned)); d != "" {
		t.Error(d)
	}
}

func TestPublishFollowsUpdatesAndEmptiesTheScope(t *testing.T) {
	p := newPKI(t)
	first, second := p.svid("/a"), p.svid("/a")
	e := distribute.New(distribute.Params{})
	feed := make(chan *svid.Update)
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	broken := errors.New("the source broke")
	next := func(ctx context.Context) (*svid.Update, error) {
		select {
		case u, ok := <-feed:
			if !ok {
				return nil, broken
			}
			return u, nil
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	done := make(chan error, 1)
	go func() { done <- Publish(ctx, e, mine, next, SecretNames{}) }()
	scopes := []distribute.Scope{mine}
	sub := e.Attach(distribute.SubscriberParams{ID: "p", Scopes: scopes})
	defer sub.Close()
	if err := sub.Request(distribute.Request{Type: TypeSecret, Subscribe: []string{"default"}}); err != nil {
		t.Fatal(err)
	}
	seen := func() string {
		r, err := sub.Next(ctx)
		if err != nil {
			t.Fatal(err)
		}
		if len(r.Resources) == 0 {
			return ""
		}
		s := named(t, r.Resources)["default"]
		cert, err := x509.ParseCertificate(pemBlocks(t, "CERTIFICATE", s.GetTlsCertificate().GetCertificateChain().GetInlineBytes())[0])
		if err != nil {
			t.Fatal(err)
		}
		return cert.SerialNumber.Text(16)
	}
	if got := seen(); got != "" {
		t.Fatalf("before the first update: %s", got)
	}
	for _, s := range []*svid.SVID{first, second} {
		feed <- &svid.Update{SVIDs: []*svid.SVID{s}, Trust: p.trust()}
		if got := seen(); got != s.Serial {
			t.Errorf("told %s, want %s", got, s.Serial)
		}
	}
	close(feed)
	if err := <-done; err != broken {
		t.Errorf("ended with %v", err)
	}
	if got := seen(); got != "" || e.Lookup(scopes, TypeSecret, "ROOTCA") != nil {
		t.Errorf("after the end: %s", got)
	}
	cancel()
	if err := Publish(ctx, e, mine, next, SecretNames{}); err != nil {
		t.Errorf("a cancelled Publish: %v", err)
	}
}
