package certfile

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/legation-io/legation/sdk/internal/pkitest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// patience bounds every wait of the tests.
const patience = time.Minute

func certPEM(c *tls.Certificate) []byte {
	var b bytes.Buffer
	for _, der := range c.Certificate {
		pem.Encode(&b, &pem.Block{Type: "CERTIFICATE", Bytes: der})
	}
	return b.Bytes()
}

func keyPEM(t testing.TB, c *tls.Certificate) []byte {
	t.Helper()
	der, err := x509.MarshalPKCS8PrivateKey(c.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})
}

func write(t testing.TB, path string, data []byte) {
	t.Helper()
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
}

func try(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// A folder of certificate files, and the Source that reads them.
type folder struct {
	t      *testing.T
	domain *pkitest.Domain
	dir    string
	source *Source
	log    lines
}

// newFolder writes a pair and starts a Source that polls too seldom to help.
func newFolder(t *testing.T, change func(*Config)) (*folder, *tls.Certificate) {
	t.Helper()
	f := &folder{t: t, domain: pkitest.New(t, "example.org", nil), dir: t.TempDir()}
	first := f.issue()
	f.put(first)
	f.start(change)
	f.serves(first)
	return f, first
}

func (f *folder) start(change func(*Config)) {
	f.t.Helper()
	c := Config{Certificate: f.path("tls.crt"), Key: f.path("tls.key"), Poll: time.Hour, Settle: 20 * time.Millisecond, Logger: f.log.logger()}
	if change != nil {
		change(&c)
	}
	source, err := New(c)
	try(f.t, err)
	f.source = source
	run(f.t, source)
	if c.Poll == time.Hour {
		f.until("it watches", func() bool { return source.Status().Watching })
	}
}

// run runs a source until the test ends.
func run(t *testing.T, s *Source) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error)
	go func() { done <- s.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
}

func (f *folder) path(name string) string { return filepath.Join(f.dir, name) }

func (f *folder) issue() *tls.Certificate { return f.domain.Issue("/web", nil) }

// put writes a pair in place, the certificate first.
func (f *folder) put(c *tls.Certificate) {
	write(f.t, f.path("tls.crt"), certPEM(c))
	write(f.t, f.path("tls.key"), keyPEM(f.t, c))
}

func (f *folder) until(what string, ok func() bool) {
	f.t.Helper()
	deadline := time.Now().Add(patience)
	for !ok() {
		if time.Now().After(deadline) {
			f.t.Fatalf("waited in vain until %s; %+v\n%s", what, f.source.Status(), f.log.String())
		}
		time.Sleep(2 * time.Millisecond)
	}
}

func serialOf(c *tls.Certificate) string { return c.Leaf.SerialNumber.Text(16) }

// serves waits until the source serves c, well.
func (f *folder) serves(c *tls.Certificate) {
	f.t.Helper()
	f.until("serial "+serialOf(c)+" is served", func() bool {
		s := f.source.Status()
		return s.Serial == serialOf(c) && s.Refused == nil
	})
	got, err := f.source.GetCertificate(nil)
	try(f.t, err)
	if !got.Leaf.Equal(c.Leaf) || !got.PrivateKey.(*ecdsa.PrivateKey).Equal(c.PrivateKey) {
		f.t.Errorf("serial %s with another key or leaf", serialOf(got))
	}
}

// refuses waits until what is there is refused for a reason, while c is served
// on.
func (f *folder) refuses(reason string, c *tls.Certificate) {
	f.t.Helper()
	f.until("the files are refused: "+reason, func() bool {
		s := f.source.Status()
		return s.Refused != nil && strings.Contains(s.Refused.Error(), reason)
	})
	if got, err := f.source.GetCertificate(nil); err != nil || !got.Leaf.Equal(c.Leaf) {
		f.t.Errorf("%v is served, want the old one", err)
	}
}

// lines is a log that is written and read by several goroutines.
type lines struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(p)
}

func (l *lines) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.String()
}

func (l *lines) logger() *slog.Logger { return slog.New(slog.NewTextHandler(l, nil)) }
