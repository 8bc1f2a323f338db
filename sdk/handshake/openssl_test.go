package handshake

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/legation-io/legation/sdk/chaincheck"
)

// pemFiles writes a certificate, its key and a root where openssl finds them.
func pemFiles(t *testing.T, cert tls.Certificate, root *authority) (certFile, keyFile, rootFile string) {
	t.Helper()
	dir := t.TempDir()
	write := func(name, kind string, der []byte) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	key, err := x509.MarshalPKCS8PrivateKey(cert.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	return write("cert.pem", "CERTIFICATE", cert.Certificate[0]), write("key.pem", "PRIVATE KEY", key), write("root.pem", "CERTIFICATE", root.cert.Raw)
}

func TestOpenSSLClients(t *testing.T) {
	w := newWorld(t)
	present := func(cert tls.Certificate) []string {
		c, k, _ := pemFiles(t, cert, w.root)
		return []string{"-cert", c, "-key", k}
	}
	_, _, root := pemFiles(t, w.client, w.root)
	_, _, foreignRoot := pemFiles(t, w.client, w.foreign)
	id := "spiffe://example.org/client"
	judged := func() *party { return &party{config: serving(w.server), verify: w.judge(chaincheck.Client)} }
	with := func(p *party, change func(*tls.Config)) *party { change(p.config); return p }
	for _, row := range []struct {
		name   string
		server *party
		args   []string
		want   verdict
	}{
		{"good", judged(), present(w.client), verdict{}},
		{"no certificate", judged(), nil, verdict{NoCertificate, Peer, 0, nil}},
		{"no certificate, TLS 1.2", judged(), []string{"-tls1_2"}, verdict{NoCertificate, Peer, 0, nil}},
		{"unknown CA", judged(), present(w.foreign.issue(t, id, nil)), verdict{UnknownCA, Peer, 0, nil}},
		{"expired", judged(), present(w.root.issue(t, id, func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Minute) })), verdict{Expired, Peer, 0, nil}},
		{"two names", judged(), present(w.root.issue(t, "", nil)), verdict{WrongSAN, Peer, 0, nil}},
		{"an old version", with(judged(), func(c *tls.Config) { c.MinVersion = tls.VersionTLS13 }), []string{"-tls1_2"}, verdict{ProtocolVersion, "", 0, nil}},
		{"a fallback that is not needed", judged(), []string{"-tls1_2", "-fallback_scsv"}, verdict{ProtocolVersion, "", 0, []string{"inappropriate"}}},
		{"another suite", with(judged(), func(c *tls.Config) {
			c.MaxVersion, c.CipherSuites = tls.VersionTLS12, []uint16{tls.TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384}
		}), []string{"-tls1_2", "-cipher", "ECDHE-ECDSA-AES128-GCM-SHA256"}, verdict{CipherSuite, "", 0, nil}},
		{"a suite of TLS 1.3 that Go does not have", judged(), []string{"-tls1_3", "-ciphersuites", "TLS_AES_128_CCM_SHA256"}, verdict{CipherSuite, "", 0, nil}},
		{"another group", with(judged(), func(c *tls.Config) { c.CurvePreferences = []tls.CurveID{tls.X25519MLKEM768} }), []string{"-groups", "P-256"}, verdict{KeyExchange, "", 0, nil}},
		{"other signature algorithms", judged(), []string{"-tls1_3", "-sigalgs", "rsa_pss_rsae_sha256"}, verdict{SignatureAlgorithm, Own, 0, nil}},
		{"another application protocol", with(judged(), func(c *tls.Config) { c.NextProtos = []string{"h2"} }), []string{"-alpn", "spdy/1"}, verdict{ALPN, "", 0, []string{`"spdy/1"`}}},
		{"a client that does not know our CA", judged(), append(present(w.client), "-CAfile", foreignRoot, "-verify_return_error", "-verify", "3"), verdict{UnknownCA, Own, 48, []string{`issued by "CN=home root"`}}},
		{"a client that wants another name", judged(), append(present(w.client), "-CAfile", root, "-verify_return_error", "-verify", "3", "-verify_hostname", "db.internal"), verdict{Rejected, Own, 42, nil}},
		{"a client that finds ours expired", with(judged(), func(c *tls.Config) {
			c.Certificates[0] = w.root.issue(t, "spiffe://example.org/server", func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Minute) })
		}), append(present(w.client), "-CAfile", root, "-verify_return_error", "-verify", "3"), verdict{Expired, Own, 45, []string{"ours, "}}},
	} {
		t.Run(row.name, func(t *testing.T) {
			l, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			defer l.Close()
			ctx, cancel := context.WithTimeout(t.Context(), patience)
			defer cancel()
			cmd := exec.CommandContext(ctx, "openssl", append([]string{"s_client", "-connect", l.Addr().String(), "-servername", "localhost"}, row.args...)...)
			var out bytes.Buffer
			cmd.Stdout, cmd.Stderr = &out, &out
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			conn, err := l.Accept()
			if err != nil {
				t.Fatal(err)
			}
			row.server.run(t, Server, conn)
			_ = cmd.Wait() // its exit code is its own verdict
			row.want.check(t, row.server, Server)
			if t.Failed() {
				t.Log(out.String())
			}
		})
	}
}

func TestOpenSSLServers(t *testing.T) {
	w := newWorld(t)
	cert, key, root := pemFiles(t, w.server, w.root)
	id := "spiffe://example.org/client"
	mutual := []string{"-Verify", "3", "-verify_return_error", "-CAfile", root}
	expired := w.root.issue(t, id, func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Minute) })
	early := w.root.issue(t, id, func(c *x509.Certificate) { c.NotBefore = time.Now().Add(30 * time.Minute) })
	forServers := w.root.issue(t, id, func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth} })
	always := func(c tls.Certificate) *tls.Config {
		config := calling()
		config.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &c, nil }
		return config
	}
	change := func(c *tls.Config, f func(*tls.Config)) *tls.Config { f(c); return c }
	for _, row := range []struct {
		name   string
		args   []string
		config *tls.Config
		want   verdict
	}{
		{"good", mutual, always(w.client), verdict{}},
		{"no certificate", mutual, calling(), verdict{NoCertificate, Own, 116, []string{`the peer wants a client certificate`}}},
		{"no certificate, TLS 1.2", append([]string{"-tls1_2"}, mutual...), calling(), verdict{NoCertificate, Own, 40, nil}},
		{"unknown CA", mutual, always(w.foreign.issue(t, id, nil)), verdict{UnknownCA, Own, 48, []string{`the peer accepts "CN=home root"`}}},
		{"expired", mutual, always(expired), verdict{Expired, Own, 45, []string{"ours, "}}},
		{"not yet valid", mutual, always(early), verdict{NotYetValid, Own, 42, []string{"valid only from"}}},
		{"made for servers", append([]string{"-purpose", "sslclient"}, mutual...), always(forServers), verdict{BadUsage, Own, 43, nil}},
		{"another version", []string{"-tls1_2"}, change(calling(), func(c *tls.Config) { c.MinVersion = tls.VersionTLS13 }), verdict{ProtocolVersion, "", 70, nil}},
		{"another suite", []string{"-tls1_2", "-cipher", "ECDHE-ECDSA-AES256-GCM-SHA384"}, change(calling(), func(c *tls.Config) {
			c.CipherSuites, c.MaxVersion = []uint16{tls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256}, tls.VersionTLS12
		}), verdict{CipherSuite, "", 40, nil}},
		{"another application protocol", []string{"-alpn", "h2"}, change(calling(), func(c *tls.Config) { c.NextProtos = []string{"spdy/1"} }), verdict{ALPN, "", 120, nil}},
		{"another server name", []string{"-servername", "db.internal", "-servername_fatal", "-cert2", cert, "-key2", key}, calling(), verdict{UnknownServerName, "", 112, nil}},
	} {
		t.Run(row.name, func(t *testing.T) {
			addr, say := opensslServer(t, append([]string{"-cert", cert, "-key", key}, row.args...)...)
			conn, err := net.Dial("tcp", addr)
			if err != nil {
				t.Fatal(err)
			}
			client := &party{config: row.config, verify: w.judge(chaincheck.Server)}
			if row.want.cause == "" {
				io.WriteString(say, "welcome\n") // what a client reads that was not refused
			}
			client.run(t, Client, conn)
			row.want.check(t, client, Client)
		})
	}
}

// opensslServer runs openssl s_server until the test ends. What is written to
// say, it sends to its client.
func opensslServer(t *testing.T, args ...string) (addr string, say io.Writer) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "openssl", append([]string{"s_server", "-accept", "127.0.0.1:0", "-naccept", "1"}, args...)...)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdin, err := cmd.StdinPipe() // it ends when this does, too
	if err != nil {
		t.Fatal(err)
	}
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		stdin.Close()
		cmd.Process.Kill()
		_ = cmd.Wait()
		if t.Failed() {
			t.Log(stderr.String())
		}
	})
	buf := make([]byte, 0, 4096)
	for {
		n, err := out.Read(buf[len(buf):cap(buf)])
		buf = buf[:len(buf)+n]
		if _, rest, ok := strings.Cut(string(buf), "ACCEPT "); ok && strings.Contains(rest, "\n") {
			go io.Copy(io.Discard, out)
			return strings.TrimSpace(strings.SplitN(rest, "\n", 2)[0]), stdin
		}
		if err != nil {
			t.Fatalf("openssl s_server did not start: %v\n%s%s", err, buf, stderr.String())
		}
	}
}
