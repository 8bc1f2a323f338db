// Package pebble runs the real Pebble, Let's Encrypt's ACME server for tests,
// as a process, with a name server that leads every name to 127.0.0.1.
package pebble

import (
	"bufio"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/legation-io/legation/internal/freeport"
)

// Options of one Pebble.
type Options struct {
	// HTTPPort and TLSPort are where it looks for answers, at 127.0.0.1.
	HTTPPort, TLSPort int
	// Env holds its faults, e.g. "PEBBLE_WFE_NONCEREJECT=90".
	Env []string
	// EAB are the external accounts that it knows, by key id; with any it asks
	// for one.
	EAB map[string]string
	// Validity of what it issues, in seconds; 0 means 90 days.
	Validity int
	// OCSP is the responder's URL that certificates name.
	OCSP string
}

// A Pebble that runs until the test ends.
type Pebble struct {
	Directory  string         // URL
	Management string         // URL without a path
	TLS        *x509.CertPool // verifies the two above
	DNS        *Names
	Log        *Log
}

var binary struct {
	sync.Once
	path string
	err  error
}

// Build returns the path of the program, built once for a test binary.
func Build(t testing.TB) string {
	t.Helper()
	binary.Do(func() {
		dir, err := os.MkdirTemp("", "pebble")
		if err != nil {
			binary.err = err
			return
		}
		binary.path = filepath.Join(dir, "pebble")
		out, err := exec.Command("go", "build", "-o", binary.path, "github.com/letsencrypt/pebble/v2/cmd/pebble").CombinedOutput()
		if err != nil {
			binary.err = fmt.Errorf("build pebble: %w\n%s", err, out)
		}
	})
	if binary.err != nil {
		t.Fatal(binary.err)
	}
	return binary.path
}

// RemoveBuilt removes the program that was built; call it at the end of
// TestMain.
func RemoveBuilt() {
	if binary.path != "" {
		os.RemoveAll(filepath.Dir(binary.path))
	}
}

// Start runs a Pebble until the test ends.
func Start(t testing.TB, o Options) *Pebble {
	t.Helper()
	program := Build(t)
	dir := t.TempDir()
	pool := serverPair(t, dir)
	listen, manage := freePort(t), freePort(t)
	names := NewNames(t)
	if o.Validity == 0 {
		o.Validity = 90 * 24 * 3600
	}
	config := map[string]any{"pebble": map[string]any{
		"listenAddress": addr(listen), "managementListenAddress": addr(manage),
		"certificate": filepath.Join(dir, "cert.pem"), "privateKey": filepath.Join(dir, "key.pem"),
		"httpPort": o.HTTPPort, "tlsPort": o.TLSPort, "ocspResponderURL": o.OCSP,
		"externalAccountBindingRequired": len(o.EAB) > 0, "externalAccountMACKeys": o.EAB,
		"keyAlgorithm": "rsa", "retryAfter": map[string]int{"authz": 1, "order": 1},
		"profiles": map[string]any{"default": map[string]any{"description": "for tests", "validityPeriod": o.Validity}},
	}}
	raw, err := json.Marshal(config)
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, "config.json")
	if err := os.WriteFile(file, raw, 0o600); err != nil {
		t.Fatal(err)
	}
	p := &Pebble{
		Directory: "https://" + addr(listen) + "/dir", Management: "https://" + addr(manage), TLS: pool, DNS: names, Log: &Log{},
	}
	command := exec.Command(program, "-config", file, "-dnsserver", names.Address)
	command.Env = append(os.Environ(), o.Env...)
	command.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL} // a test that panics cleans nothing up
	out, err := command.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	command.Stderr = command.Stdout
	if err := command.Start(); err != nil {
		t.Fatal(err)
	}
	read := make(chan struct{})
	go func() { p.Log.read(out); close(read) }()
	t.Cleanup(func() {
		command.Process.Kill()
		<-read
		command.Wait()
		if t.Failed() {
			t.Logf("the end of pebble's log:\n%s", p.Log.Tail(60))
		}
	})
	deadline := time.Now().Add(time.Minute)
	for {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		_, err := p.get(ctx, p.Directory)
		cancel()
		if err == nil {
			return p
		}
		if time.Now().After(deadline) {
			t.Fatalf("pebble does not answer: %v\n%s", err, p.Log.Tail(40))
		}
		time.Sleep(20 * time.Millisecond)
	}
}

func addr(port int) string { return fmt.Sprintf("127.0.0.1:%d", port) }

func freePort(t testing.TB) int {
	t.Helper()
	port, err := freeport.Find()
	if err != nil {
		t.Fatal(err)
	}
	return port
}

// Client speaks to the Pebble's own addresses.
func (p *Pebble) Client() *http.Client {
	return &http.Client{Timeout: 30 * time.Second, Transport: &http.Transport{DisableKeepAlives: true, TLSClientConfig: &tls.Config{RootCAs: p.TLS}}}
}

func (p *Pebble) get(ctx context.Context, url string) ([]byte, error) {
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, err
	}
	resp, err := p.Client().Do(r)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("%s: %s", url, resp.Status)
	}
	return io.ReadAll(io.LimitReader(resp.Body, 1<<20))
}

// Manage returns what the management address has at a path.
func (p *Pebble) Manage(t testing.TB, path string) []byte {
	t.Helper()
	b, err := p.get(t.Context(), p.Management+path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// Post sends a document to the management address.
func (p *Pebble) Post(t testing.TB, path string, body string) {
	t.Helper()
	resp, err := p.Client().Post(p.Management+path, "application/json", strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		answer, _ := io.ReadAll(resp.Body)
		t.Fatalf("POST %s: %s %s", path, resp.Status, answer)
	}
}

// Roots verifies what this Pebble issued.
func (p *Pebble) Roots(t testing.TB) *x509.CertPool {
	t.Helper()
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(p.Manage(t, "/roots/0")) {
		t.Fatal("pebble's root is no PEM")
	}
	return pool
}

// serverPair writes a certificate for Pebble's own addresses.
func serverPair(t testing.TB, dir string) *x509.CertPool {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "pebble"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, DNSNames: []string{"localhost"}, IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	keyDER, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	for name, block := range map[string]*pem.Block{"cert.pem": {Type: "CERTIFICATE", Bytes: der}, "key.pem": {Type: "EC PRIVATE KEY", Bytes: keyDER}} {
		if err := os.WriteFile(filepath.Join(dir, name), pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	certificate, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AddCert(certificate)
	return pool
}

// Log keeps what Pebble said.
type Log struct {
	mu    sync.Mutex
	lines []string
}

func (l *Log) read(r io.Reader) {
	s := bufio.NewScanner(r)
	s.Buffer(nil, 1<<20)
	for s.Scan() {
		l.mu.Lock()
		l.lines = append(l.lines, s.Text())
		if len(l.lines) > 200_000 {
			l.lines = l.lines[100_000:]
		}
		l.mu.Unlock()
	}
}

// Count says how many lines have a text.
func (l *Log) Count(text string) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	n := 0
	for _, line := range l.lines {
		if strings.Contains(line, text) {
			n++
		}
	}
	return n
}

// Tail is the last n lines.
func (l *Log) Tail(n int) string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Join(l.lines[max(0, len(l.lines)-n):], "\n")
}
