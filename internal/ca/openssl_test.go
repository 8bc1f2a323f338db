package ca

import (
	"context"
	"encoding/pem"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// openssl judges the chains that leave, with the lists that go with them.
func TestOpenSSLAcceptsEveryProfileStrictly(t *testing.T) {
	if _, err := exec.LookPath("openssl"); err != nil {
		t.Fatal("openssl is not installed: apt-get install openssl")
	}
	a := newWorld(t).replica()
	dir := t.TempDir()
	write := func(name, kind string, ders ...[]byte) string {
		t.Helper()
		path := filepath.Join(dir, name)
		var text []byte
		for _, der := range ders {
			text = append(text, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})...)
		}
		if err := os.WriteFile(path, text, 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	verify := func(leaf string, purpose string) (string, bool) {
		state, _ := a.State()
		issuing, root := a.Chain()
		out, err := exec.Command("openssl", "verify", "-x509_strict", "-crl_check_all", "-purpose", purpose,
			"-CAfile", write("root.pem", "CERTIFICATE", root.Raw), "-untrusted", write("issuing.pem", "CERTIFICATE", issuing.Raw),
			"-CRLfile", write("crl.pem", "X509 CRL", state.CRL.Lists...), leaf).CombinedOutput()
		return string(out), err == nil
	}
	for profile, id := range map[Profile]string{
		ProfileWorkload: "/ns/default/sa/web", ProfileAgent: "/legation/agent/node-1", ProfileServer: "/legation/server", ProfileOperator: "/people/alice",
	} {
		req := requestFor(t, idOf(id))
		req.Profile = profile
		req.DNSNames = []string{"web.default.svc"}
		req.IPs = []netip.Addr{netip.MustParseAddr("10.0.0.7"), netip.MustParseAddr("fd00::7")}
		_, result := sign(t, a, req)
		leaf := write(string(profile)+".pem", "CERTIFICATE", result.Chain[0])
		purposes := []string{"sslclient", "sslserver"}
		if profile == ProfileOperator {
			purposes = purposes[:1]
		}
		for _, purpose := range purposes {
			if out, ok := verify(leaf, purpose); !ok {
				t.Errorf("%s as %s: %s", profile, purpose, out)
			}
		}
		if _, err := a.Revoke(context.Background(), RevokeRequest{Serial: result.Serial}); err != nil {
			t.Fatal(err)
		}
		if out, ok := verify(leaf, "sslclient"); ok || !strings.Contains(out, "revoked") {
			t.Errorf("%s, revoked: %s; want it refused as revoked", profile, out)
		}
	}
}
