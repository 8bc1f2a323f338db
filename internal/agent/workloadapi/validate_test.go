package workloadapi

import (
	"bytes"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/legation-io/legation/internal/agent/svid"
	"github.com/legation-io/legation/sdk/jwtcheck"
)

func TestADomainWhoseKeysCannotBeReadIsRefusedAlone(t *testing.T) {
	own, partner := newAuthority(t, domain, "same"), newAuthority(t, "partner.example", "same")
	var log bytes.Buffer
	s := &Server{log: slog.New(slog.NewTextHandler(&log, nil)), tokens: jwtcheck.New(jwtcheck.Config{})}
	trust := &svid.Trust{TrustDomain: domain, JWKS: map[string][]byte{
		domain: own.bundle(t).Jwks, "partner.example": []byte("{"), "NOT a domain": partner.bundle(t).Jwks,
	}}
	keys := s.keysOf(trust)
	if s.keysOf(trust) != keys {
		t.Error("parsed twice")
	}
	verify := func(a *authority, sub string) error {
		token, err := a.token(map[string]any{"sub": sub, "aud": "db", "exp": time.Now().Add(time.Minute).Unix()})
		if err != nil {
			t.Fatal(err)
		}
		_, err = s.tokens.Verify(keys, token, "db")
		return err
	}
	if err := verify(own, "spiffe://example.org/web"); err != nil {
		t.Error(err)
	}
	if verify(partner, "spiffe://partner.example/web") == nil {
		t.Error("a token of a domain without readable keys passes")
	}
	for _, name := range []string{"partner.example", "NOT a domain"} {
		if !strings.Contains(log.String(), name) {
			t.Errorf("nothing is said about %s: %s", name, &log)
		}
	}
	if s.keysOf(&svid.Trust{TrustDomain: domain}) == keys {
		t.Error("old keys for a new trust")
	}
}
