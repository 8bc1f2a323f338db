package acmecert

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/mholt/acmez/v3/acme"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
)

func pemOf(chain ...*x509.Certificate) []byte {
	var out []byte
	for _, c := range chain {
		out = append(out, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})...)
	}
	return out
}

func TestAnIssuedCertificateIsRefused(t *testing.T) {
	ca, key := newTestCA(t), newKey(t)
	for name, row := range map[string]struct {
		key    *ecdsa.PrivateKey
		change func(*x509.Certificate)
		names  []string
		says   string
	}{
		"never when it is what was asked for": {key, nil, []string{"a.test"}, ""},
		"never for the case of its letters":   {key, nil, []string{"A.test"}, ""},
		"for another key":                     {newKey(t), nil, []string{"a.test"}, "another key"},
		"for another name":                    {key, nil, []string{"b.test"}, "b.test"},
		"for a further name":                  {key, nil, []string{"a.test", "b.test"}, "b.test"},
		"for no name":                         {key, nil, nil, "was asked for"},
		"with an address":                     {key, func(c *x509.Certificate) { c.IPAddresses = []net.IP{{127, 0, 0, 1}} }, []string{"a.test"}, "1 addresses"},
		"with a SPIFFE ID":                    {key, func(c *x509.Certificate) { c.URIs = []*url.URL{{Scheme: "spiffe", Host: "a"}} }, []string{"a.test"}, "1 URIs"},
		"as a CA's":                           {key, func(c *x509.Certificate) { c.IsCA = true }, []string{"a.test"}, "CA's"},
		"for clients only":                    {key, func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth} }, []string{"a.test"}, "not for TLS servers"},
		"when it has ended":                   {key, func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Second) }, []string{"a.test"}, "clock"},
		"when it has not begun":               {key, func(c *x509.Certificate) { c.NotBefore = time.Now().Add(time.Hour) }, []string{"a.test"}, "clock"},
	} {
		t.Run(name, func(t *testing.T) {
			leaf := ca.sign(row.key.Public(), row.change, row.names...)
			_, err := checkIssued(pemOf(leaf, ca.certificate), key.Public(), []string{"a.test"}, time.Now())
			if (err == nil) != (row.says == "") || err != nil && !strings.Contains(err.Error(), row.says) {
				t.Error(err)
			}
		})
	}
	leaf := ca.sign(key.Public(), nil, "a.test")
	for name, row := range map[string]struct {
		chain []byte
		says  string
	}{
		"without a certificate":        {nil, "no certificate"},
		"with links that do not hold":  {pemOf(leaf, newTestCA(t).certificate), "not signed by"},
		"with a private key in it":     {append(pemOf(leaf), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: []byte{1}})...), "only certificates"},
		"with more certificates":       {bytes.Repeat(pemOf(leaf), maxChain+1), "more than 10"},
		"longer than 64 KiB":           {make([]byte, maxChainBytes+1), "more than 65536"},
		"that is no DER":               {pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: []byte{1}}), "certificate 1"},
		"never when it is leaf and CA": {pemOf(leaf, ca.certificate), ""},
	} {
		t.Run("a chain "+name, func(t *testing.T) {
			_, err := checkIssued(row.chain, key.Public(), []string{"a.test"}, time.Now())
			if (err == nil) != (row.says == "") || err != nil && !strings.Contains(err.Error(), row.says) {
				t.Error(err)
			}
		})
	}
}

func FuzzChain(f *testing.F) {
	ca, key := newTestCA(f), newKey(f)
	f.Add(pemOf(ca.sign(key.Public(), nil, "a.test"), ca.certificate))
	f.Add([]byte("-----BEGIN CERTIFICATE-----\n-----END CERTIFICATE-----"))
	other := newKey(f)
	f.Fuzz(func(t *testing.T, chain []byte) {
		if _, err := checkIssued(chain, other.Public(), []string{"a.test"}, time.Now()); err == nil {
			t.Fatal("a certificate for another key was taken")
		}
	})
}

func TestA57ADirectoryThatIsNotHTTPSIsRefused(t *testing.T) {
	for _, directory := range []string{"http://ca.test/dir", "HTTP://ca.test/dir", "ftp://ca.test/", "ca.test/dir", "//ca.test/dir", "https://", "https://user:secret@ca.test/dir", "file:///etc/passwd", "http://localhost/dir", "http://10.0.0.1/dir"} {
		_, err := New(Config{Domains: []string{"a.test"}, Storage: &Memory{}, Directory: directory})
		if err == nil || !strings.Contains(err.Error(), "https") {
			t.Errorf("%q: %v", directory, err)
		}
	}
	for name, change := range map[string]func(map[string]string){
		"its newOrder is http":       func(d map[string]string) { d["newOrder"] = "http://ca.test/o" },
		"its newNonce is a file":     func(d map[string]string) { d["newNonce"] = "file:///etc/passwd" },
		"its renewalInfo is http":    func(d map[string]string) { d["renewalInfo"] = "http://ca.test/r" },
		"it has no newAccount":       func(d map[string]string) { delete(d, "newAccount") },
		"its newAccount is relative": func(d map[string]string) { d["newAccount"] = "/a" },
	} {
		d := map[string]string{"newNonce": "https://ca.test/n", "newAccount": "https://ca.test/a", "newOrder": "https://ca.test/o"}
		change(d)
		raw, _ := json.Marshal(d)
		if _, err := parseDirectory(raw); err == nil {
			t.Errorf("a directory is taken though %s", name)
		}
	}
}

func TestA57ATokenIsOfItsAlphabetOrRefused(t *testing.T) {
	m := newManager(t, nil)
	for _, bad := range []string{"", "../../etc/passwd", "a/b", "a.b", "a b", "a\nb", "a=", "<x>", "ä", strings.Repeat("a", 257)} {
		for _, kind := range []Challenge{HTTP01, TLSALPN01} {
			err := (solver{kind, m.challenges}).Present(t.Context(), acme.Challenge{Identifier: acme.Identifier{Type: "dns", Value: "a.test"}, Token: bad, KeyAuthorization: bad + ".t"})
			if err == nil {
				t.Errorf("%s: %q was shown", kind, bad)
			}
		}
	}
	for name, c := range map[string]acme.Challenge{
		"for a name that was not asked for": {Identifier: acme.Identifier{Value: "evil.test"}, Token: "abc", KeyAuthorization: "abc.t"},
		"for a name that is a path":         {Identifier: acme.Identifier{Value: "../../a.test"}, Token: "abc", KeyAuthorization: "abc.t"},
		"with another authorization":        {Identifier: acme.Identifier{Value: "a.test"}, Token: "abc", KeyAuthorization: "<script>"},
	} {
		if err := (solver{HTTP01, m.challenges}).Present(t.Context(), c); err == nil {
			t.Errorf("a challenge %s was shown", name)
		}
	}
	if len(m.challenges.own) != 0 {
		t.Errorf("%d challenges are shown", len(m.challenges.own))
	}
}

func TestAConfigurationIsRefusedWithAllItsMistakes(t *testing.T) {
	_, err := New(Config{
		Domains: []string{"a.test", "A.test.", "*.b.test", "1.2.3.4", "a_b..test", "-a.test"}, Email: "a,b", KeyType: "p224",
		Challenges: []Challenge{"dns-02", DNS01}, EAB: &EAB{KeyID: "k", HMAC: "not base64!"}, RenewAt: 1.5, HTTPTimeout: -1, UserAgent: "a\nb",
	})
	if err == nil {
		t.Fatal("it was taken")
	}
	for _, says := range []string{"there twice", `"1.2.3.4" is an address`, `"a_b..test" is not a DNS name`, "-a.test", "Email", "Storage is not set", "EAB needs", "p224", "dns-02", "needs DNS", "RenewAt", "HTTPTimeout", "UserAgent"} {
		if !strings.Contains(err.Error(), says) {
			t.Errorf("it does not say %q:\n%v", says, err)
		}
	}
}

func TestARefusedNonceIsAnsweredWithASignatureOfItsOwn(t *testing.T) {
	key := newKey(t)
	protected := base64.RawURLEncoding.EncodeToString([]byte(`{"alg":"ES256","kid":"https://ca.test/1","nonce":"old","url":"https://ca.test/o"}`))
	body, _ := json.Marshal(jws{protected, "cGF5bG9hZA", "AA"})
	again, ok := resign(key, body, "fresh")
	if !ok {
		t.Fatal("it was not signed")
	}
	var signed jws
	if err := json.Unmarshal(again, &signed); err != nil {
		t.Fatal(err)
	}
	header, _ := base64.RawURLEncoding.DecodeString(signed.Protected)
	if !strings.Contains(string(header), `"nonce":"fresh"`) || !strings.Contains(string(header), `"url":"https://ca.test/o"`) || signed.Payload != "cGF5bG9hZA" {
		t.Errorf("%s %s", header, signed.Payload)
	}
	for name, row := range map[string]struct{ body, nonce string }{
		"what is no JWS":             {"{", "n"},
		"another algorithm":          {strings.Replace(string(body), protected, base64.RawURLEncoding.EncodeToString([]byte(`{"alg":"none"}`)), 1), "n"},
		"a nonce of other alphabets": {string(body), `n","x":"`},
	} {
		if _, ok := resign(key, []byte(row.body), row.nonce); ok {
			t.Errorf("%s was signed", name)
		}
	}
}

func TestRenewalIs(t *testing.T) {
	m := newManager(t, nil)
	now := time.Now()
	leaf := &x509.Certificate{SerialNumber: selfSigned(t, "a.test", time.Hour).Leaf.SerialNumber, NotBefore: now, NotAfter: now.Add(90 * 24 * time.Hour)}
	day := 24 * time.Hour
	for name, row := range map[string]struct {
		selected time.Duration
		want     time.Duration
	}{
		"at two thirds of the life without the CA's word": {0, 60 * day},
		"when the CA says":                                          {30 * day, 30 * day},
		"never before an hour, whatever the CA says":                {-100 * day, time.Hour},
		"never in the last tenth of the life, whatever the CA says": {89 * day, 81 * day},
	} {
		d := &domainState{}
		if row.selected != 0 {
			d.ari, d.ariOf = acme.RenewalInfo{SelectedTime: now.Add(row.selected)}, serial(leaf)
		}
		if got := m.renewalTime(d, leaf).Sub(now); got.Round(time.Minute) != row.want {
			t.Errorf("%s: after %s, want %s", name, got, row.want)
		}
	}
}

func TestRunLeavesNothingBehind(t *testing.T) { // goleak, in TestMain
	hanging := httptest.NewUnstartedServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }))
	hanging.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, 0)
	hanging.StartTLS()
	defer hanging.Close()
	pool := x509.NewCertPool()
	pool.AddCert(hanging.Certificate())
	registry := prometheus.NewRegistry()
	m := newManager(t, func(c *Config) { c.Directory, c.RootCAs, c.Registerer = hanging.URL, pool, registry })
	ended := make(chan error, 1)
	go func() { ended <- m.Run(t.Context()) }()
	for deadline := time.Now().Add(time.Minute); m.isIdle(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("it does not run")
		}
	}
	if err := m.Run(t.Context()); err == nil {
		t.Error("it runs twice")
	}
	if err := m.Close(); err != nil {
		t.Error(err)
	}
	if err := <-ended; err != nil {
		t.Error(err)
	}
	if err := m.Close(); err != nil {
		t.Error("closing again:", err)
	}
	if _, err := testutil.GatherAndCount(registry); err != nil {
		t.Error(err)
	}
	if _, err := New(Config{Domains: []string{"a.test"}, Storage: &Memory{}, Registerer: registry}); err == nil {
		t.Error("metrics of two Managers meet")
	}
}

func (m *Manager) isIdle() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.running == nil
}
