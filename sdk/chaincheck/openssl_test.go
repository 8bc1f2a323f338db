package chaincheck

import (
	"bytes"
	"context"
	"crypto"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// openssl runs the real program; it is a peer of these tests.
func openssl(t testing.TB, args ...string) (string, error) {
	t.Helper()
	path, err := exec.LookPath("openssl")
	if err != nil {
		t.Fatal("these tests compare with the real openssl: install it, or make setup")
	}
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	out, err := exec.CommandContext(ctx, path, args...).CombinedOutput()
	return string(out), err
}

func writePEM(t testing.TB, dir, name, kind string, ders ...[]byte) string {
	t.Helper()
	var b bytes.Buffer
	for _, der := range ders {
		if err := pem.Encode(&b, &pem.Block{Type: kind, Bytes: der}); err != nil {
			t.Fatal(err)
		}
	}
	path := filepath.Join(dir, name)
	if err := os.WriteFile(path, b.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func writeKey(t testing.TB, dir, name string, key crypto.Signer) string {
	t.Helper()
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return writePEM(t, dir, name, "PRIVATE KEY", der)
}

// TestTheRealOpenSSLResponderIsUnderstood: it reads our questions, with their
// nonce, and we read its answers; and it verifies what our tests sign.
func TestTheRealOpenSSLResponderIsUnderstood(t *testing.T) {
	dir := t.TempDir()
	w := ocspWorld(t)
	// openssl answers by the clock of the machine.
	real := time.Now()
	long := func(c *x509.Certificate) { c.NotBefore, c.NotAfter = real.Add(-time.Hour), real.Add(time.Hour) }
	w.root = ca(t, "root", nil, long)
	w.issuing = ca(t, "issuing", w.root, long)
	responder := w.issuing.responder(t, long)
	w.params.Chain = []*x509.Certificate{w.leaf, w.issuing.cert}
	w.params.Roots[domain] = []*x509.Certificate{w.root.cert}
	w.params.CRLs = crls(t, w.root.crl(t, 1, func(l *x509.RevocationList) {
		l.ThisUpdate, l.NextUpdate = real.Add(-time.Minute), real.Add(time.Hour)
	}))
	issuer := writePEM(t, dir, "issuing.pem", "CERTIFICATE", w.issuing.cert.Raw)
	cert := writePEM(t, dir, "responder.pem", "CERTIFICATE", responder.cert.Raw)
	key := writeKey(t, dir, "responder.key", responder.key)
	index := filepath.Join(dir, "index.txt")
	for _, tt := range []struct {
		name  string
		index string // of the serial, "" not there
		mode  NonceMode
		sha2  bool
		byKey bool
		want  Cause
		why   string
	}{
		{"good", "V", NonceRequire, false, false, "", ""},
		{"good, named by SHA-256", "V", NonceRequire, true, false, "", ""},
		{"good, the responder named by key", "V", NonceRequire, false, true, "", ""},
		{"good, without a nonce", "V", NonceOff, false, false, "", ""},
		{"revoked", "R", NonceSend, false, false, Revoked, "keyCompromise"},
		{"unknown", "", NonceSend, false, false, RevocationUnknown, "does not know"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w.present(w.issuing.leaf(t, func(c *x509.Certificate) { long(c); withURL(c) }))
			revokedAt := ""
			if tt.index == "R" {
				revokedAt = real.Add(-time.Minute).UTC().Format("060102150405Z") + ",keyCompromise"
			}
			serial := w.leaf.SerialNumber.Text(16)
			if len(serial)%2 == 1 {
				serial = "0" + serial
			}
			line := fmt.Sprintf("%s\t%s\t%s\t%s\tunknown\t/CN=web\n", tt.index, w.leaf.NotAfter.UTC().Format("060102150405Z"), revokedAt, strings.ToUpper(serial))
			if tt.index == "" {
				line = ""
			}
			if err := os.WriteFile(index, []byte(line), 0o600); err != nil {
				t.Fatal(err)
			}
			fetcher := &responders{}
			fetcher.set(func(_ context.Context, q OCSPRequest) ([]byte, error) {
				in, out := filepath.Join(dir, "req.der"), filepath.Join(dir, "resp.der")
				if err := os.WriteFile(in, q.DER, 0o600); err != nil {
					return nil, err
				}
				args := []string{"ocsp", "-index", index, "-CA", issuer, "-rsigner", cert, "-rkey", key, "-reqin", in, "-respout", out, "-ndays", "1"}
				if tt.byKey {
					args = append(args, "-resp_key_id")
				}
				if talk, err := openssl(t, args...); err != nil {
					return nil, fmt.Errorf("openssl ocsp: %w\n%s", err, talk)
				}
				return os.ReadFile(out)
			})
			p := w.params
			p.Now = real
			p.OCSP = newOCSP(t, OCSPConfig{Fetcher: fetcher, Nonce: tt.mode, SHA256: tt.sha2, Now: time.Now})
			result, err := Verify(p)
			holdsCause(t, result, err, tt.want)
			if err != nil && !strings.Contains(err.Error(), tt.why) {
				t.Errorf("%v; want %q", err, tt.why)
			}
		})
	}
	// The other way round: the responses that the tests here build are real.
	leaf := writePEM(t, dir, "leaf.pem", "CERTIFICATE", w.leaf.Raw)
	root := writePEM(t, dir, "root.pem", "CERTIFICATE", w.root.cert.Raw)
	response := filepath.Join(dir, "ours.der")
	der := w.issuing.staple(t, w.leaf, by(responder), func(r *reply) { r.this, r.produced, r.next = real.Add(-time.Minute), real, real.Add(time.Hour) })
	if err := os.WriteFile(response, der, 0o600); err != nil {
		t.Fatal(err)
	}
	talk, err := openssl(t, "ocsp", "-respin", response, "-issuer", issuer, "-cert", leaf, "-CAfile", root, "-verify_other", issuer, "-no_nonce")
	if err != nil || !strings.Contains(talk, "Response verify OK") || !strings.Contains(talk, ": good") {
		t.Errorf("openssl says of ours: %v\n%s", err, talk)
	}
}
