package certfile

import (
	"context"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/legation-io/legation/sdk/identity"
	"github.com/legation-io/legation/sdk/internal/pkitest"
)

func TestHowFilesAreReplaced(t *testing.T) {
	for _, row := range []struct {
		name    string
		replace func(f *folder, next *tls.Certificate)
	}{
		{"in place, the certificate first", func(f *folder, next *tls.Certificate) { f.put(next) }},
		{"in place, the key first", func(f *folder, next *tls.Certificate) {
			write(f.t, f.path("tls.key"), keyPEM(f.t, next))
			write(f.t, f.path("tls.crt"), certPEM(next))
		}},
		{"as editors do, by renames", func(f *folder, next *tls.Certificate) {
			write(f.t, f.path(".tls.key.swp"), keyPEM(f.t, next))
			write(f.t, f.path(".tls.crt.swp"), certPEM(next))
			try(f.t, os.Rename(f.path(".tls.key.swp"), f.path("tls.key")))
			try(f.t, os.Rename(f.path(".tls.crt.swp"), f.path("tls.crt")))
		}},
		{"deleted, then written again", func(f *folder, next *tls.Certificate) {
			try(f.t, os.Remove(f.path("tls.key")))
			try(f.t, os.Remove(f.path("tls.crt")))
			f.until("deletion is noticed", func() bool { return f.source.Status().Refused != nil })
			f.put(next)
		}},
		{"with their folder deleted and made again", func(f *folder, next *tls.Certificate) {
			try(f.t, os.RemoveAll(f.dir))
			f.until("deletion is noticed", func() bool { return f.source.Status().Refused != nil })
			try(f.t, os.MkdirAll(f.dir, 0o700))
			f.put(next)
		}},
		{"with their folder renamed and another in its place", func(f *folder, next *tls.Certificate) {
			other := f.dir + ".new"
			try(f.t, os.Mkdir(other, 0o700))
			write(f.t, filepath.Join(other, "tls.crt"), certPEM(next))
			write(f.t, filepath.Join(other, "tls.key"), keyPEM(f.t, next))
			try(f.t, os.Rename(f.dir, f.dir+".old"))
			try(f.t, os.Rename(other, f.dir))
		}},
		{"slowly, byte by byte", func(f *folder, next *tls.Certificate) {
			cert := certPEM(next)
			for n := 0; n < len(cert); n += 100 {
				write(f.t, f.path("tls.crt"), cert[:n])
				time.Sleep(5 * time.Millisecond) // as a slow writer does
			}
			f.put(next)
		}},
	} {
		t.Run(row.name, func(t *testing.T) {
			f, _ := newFolder(t, nil)
			for range 3 { // what was set up again must work again
				next := f.issue()
				os.RemoveAll(f.dir + ".old")
				row.replace(f, next)
				f.serves(next)
			}
		})
	}
}

// kubernetes lays files out as a Secret volume: names are links through ..data.
func kubernetes(t *testing.T, dir string, stamp string, files map[string][]byte) {
	t.Helper()
	try(t, os.MkdirAll(filepath.Join(dir, stamp), 0o755))
	for name, data := range files {
		write(t, filepath.Join(dir, stamp, name), data)
		if _, err := os.Lstat(filepath.Join(dir, name)); err != nil {
			try(t, os.Symlink(filepath.Join("..data", name), filepath.Join(dir, name)))
		}
	}
	old, _ := os.Readlink(filepath.Join(dir, "..data"))
	try(t, os.Symlink(stamp, filepath.Join(dir, "..data_tmp")))
	try(t, os.Rename(filepath.Join(dir, "..data_tmp"), filepath.Join(dir, "..data")))
	if old != "" {
		try(t, os.RemoveAll(filepath.Join(dir, old)))
	}
}

func TestKubernetesSwapsTheFolder(t *testing.T) {
	f := &folder{t: t, domain: pkitest.New(t, "example.org", nil), dir: t.TempDir()}
	put := func(stamp string) *tls.Certificate {
		c := f.issue()
		kubernetes(t, f.dir, stamp, map[string][]byte{"tls.crt": certPEM(c), "tls.key": keyPEM(t, c)})
		return c
	}
	first := put("..2026_11_20_01")
	f.start(nil)
	f.serves(first)
	for _, stamp := range []string{"..2026_11_20_02", "..2026_11_20_03", "..2026_11_20_04"} {
		f.serves(put(stamp))
	}
	if strings.Contains(f.log.String(), "refused") {
		t.Errorf("a swap is atomic, nothing is to be refused:\n%s", f.log.String())
	}
}

func TestLinksThroughOtherFolders(t *testing.T) {
	f := &folder{t: t, domain: pkitest.New(t, "example.org", nil)}
	base := t.TempDir()
	live, archive := filepath.Join(base, "live"), filepath.Join(base, "archive")
	f.dir = filepath.Join(base, "etc")
	for _, dir := range []string{live, archive} {
		try(t, os.Mkdir(dir, 0o700))
	}
	try(t, os.Symlink(live, f.dir)) // the folder itself is a link
	relink := func(n string) *tls.Certificate {
		c := f.issue()
		write(t, filepath.Join(archive, "cert"+n), certPEM(c))
		write(t, filepath.Join(archive, "key"+n), keyPEM(t, c))
		for link, target := range map[string]string{"tls.crt": "cert" + n, "tls.key": "key" + n} {
			tmp := filepath.Join(live, link+".tmp")
			try(t, os.Symlink("../archive/"+target, tmp))
			try(t, os.Rename(tmp, filepath.Join(live, link)))
		}
		return c
	}
	first := relink("1")
	f.start(nil)
	f.serves(first)
	f.serves(relink("2")) // as certbot does

	// Written where the links lead to.
	third := f.issue()
	write(t, filepath.Join(archive, "cert2"), certPEM(third))
	write(t, filepath.Join(archive, "key2"), keyPEM(t, third))
	f.serves(third)

	// The folder's link leads elsewhere.
	fourth := f.issue()
	elsewhere := filepath.Join(base, "elsewhere")
	try(t, os.Mkdir(elsewhere, 0o700))
	write(t, filepath.Join(elsewhere, "tls.crt"), certPEM(fourth))
	write(t, filepath.Join(elsewhere, "tls.key"), keyPEM(t, fourth))
	try(t, os.Symlink(elsewhere, filepath.Join(base, "tmp")))
	try(t, os.Rename(filepath.Join(base, "tmp"), f.dir))
	f.serves(fourth)
}

func TestWhatIsRefusedAndTheOldServedOn(t *testing.T) {
	domain := pkitest.New(t, "example.org", nil)
	bent := func(change func(*x509.Certificate)) *tls.Certificate { return domain.Issue("/web", change) }
	small, err := rsa.GenerateKey(rand.Reader, 1024)
	try(t, err)
	smallDER, err := x509.MarshalPKCS8PrivateKey(small)
	try(t, err)
	for _, row := range []struct {
		name, reason string
		do           func(f *folder)
	}{
		{"a key of another certificate", "does not belong to the certificate", func(f *folder) { write(t, f.path("tls.key"), keyPEM(t, f.issue())) }},
		{"a certificate without its end", "does not end: half written", func(f *folder) { c := certPEM(f.issue()); write(t, f.path("tls.crt"), c[:len(c)-30]) }},
		{"a key without its end", "does not end: half written", func(f *folder) { k := keyPEM(t, f.issue()); write(t, f.path("tls.key"), k[:60]) }},
		{"an empty file", "is empty", func(f *folder) { write(t, f.path("tls.crt"), nil) }},
		{"no file", "does not exist", func(f *folder) { try(t, os.Remove(f.path("tls.key"))) }},
		{"something else", "no CERTIFICATE block", func(f *folder) { write(t, f.path("tls.crt"), []byte("hello\n")) }},
		{"a certificate that does not parse", "does not parse", func(f *folder) {
			write(t, f.path("tls.crt"), pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: []byte("no")}))
		}},
		{"base64 that is none", "is not base64", func(f *folder) {
			write(t, f.path("tls.key"), []byte("-----BEGIN PRIVATE KEY-----\n!!!!\n-----END PRIVATE KEY-----\n"))
		}},
		{"no key", "no PRIVATE KEY block", func(f *folder) { write(t, f.path("tls.key"), certPEM(f.issue())) }},
		{"two keys", "two private keys", func(f *folder) {
			write(t, f.path("tls.key"), append(keyPEM(t, f.issue()), keyPEM(t, f.issue())...))
		}},
		{"an encrypted key, PKCS #8", "is encrypted", func(f *folder) {
			write(t, f.path("tls.key"), pem.EncodeToMemory(&pem.Block{Type: "ENCRYPTED PRIVATE KEY", Bytes: []byte("x")}))
		}},
		{"an encrypted key, as of old", "is encrypted", func(f *folder) {
			write(t, f.path("tls.key"), pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Headers: map[string]string{"Proc-Type": "4,ENCRYPTED"}, Bytes: []byte("x")}))
		}},
		{"an RSA key that is too short", "at least 2048", func(f *folder) {
			write(t, f.path("tls.key"), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: smallDER}))
		}},
		{"past its time", "expired", func(f *folder) {
			f.put(bent(func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Minute) }))
		}},
		{"not yet valid", "valid only from", func(f *folder) {
			f.put(bent(func(c *x509.Certificate) { c.NotBefore = time.Now().Add(time.Minute) }))
		}},
		{"two URI names", "2 URI names", func(f *folder) {
			f.put(bent(func(c *x509.Certificate) { c.URIs = append(c.URIs, &url.URL{Scheme: "spiffe", Host: "b", Path: "/x"}) }))
		}},
		{"the leaf is not first", "leaf must come first", func(f *folder) {
			c := f.issue()
			f.put(c)
			write(t, f.path("tls.crt"), append(certPEM(&tls.Certificate{Certificate: [][]byte{domain.Issuing().Cert.Raw}}), certPEM(c)...))
		}},
		{"a file of a megabyte", "at most 1048576 are read", func(f *folder) { write(t, f.path("tls.crt"), make([]byte, 1<<20+1)) }},
		{"a pipe", "is not a file", func(f *folder) {
			try(t, os.Remove(f.path("tls.crt")))
			try(t, syscall.Mkfifo(f.path("tls.crt"), 0o600))
		}},
		{"a folder", "is not a file", func(f *folder) {
			try(t, os.Remove(f.path("tls.crt")))
			try(t, os.Mkdir(f.path("tls.crt"), 0o700))
		}},
		{"a link to itself", "too many levels", func(f *folder) {
			try(t, os.Remove(f.path("tls.crt")))
			try(t, os.Symlink("tls.crt", f.path("tls.crt")))
		}},
	} {
		t.Run(row.name, func(t *testing.T) {
			registry := prometheus.NewRegistry()
			f, first := newFolder(t, func(c *Config) { c.Registerer = registry })
			row.do(f)
			f.refuses(row.reason, first)
			for range 3 {
				if err := f.source.Reload(); err == nil {
					t.Error("reloading by hand says nothing")
				}
			}
			logged := 0
			for line := range strings.Lines(f.log.String()) {
				if strings.Contains(line, "new certificate files are refused") && strings.Contains(line, row.reason) {
					logged++
				}
			}
			if logged != 1 {
				t.Errorf("it was logged %d times:\n%s", logged, f.log.String())
			}
			refused := testutil.ToFloat64(f.source.metrics.refused)
			if refused < 4 {
				t.Errorf("%v were counted", refused)
			}
			if strings.Contains(f.log.String(), "!!!!") {
				t.Error("a piece of the key is in the log")
			}

			os.RemoveAll(f.path("tls.crt"))
			next := f.issue()
			f.put(next)
			f.serves(next)
			if testutil.ToFloat64(f.source.metrics.changed) != 2 || testutil.ToFloat64(f.source.metrics.watching) != 1 ||
				testutil.ToFloat64(f.source.metrics.expiry) != float64(next.Leaf.NotAfter.Unix()) {
				t.Error("the metrics do not say so")
			}
		})
	}
}

func TestWhatWasRefusedAndIsTakenBackIsFineAgain(t *testing.T) {
	f, first := newFolder(t, nil)
	write(t, f.path("tls.key"), keyPEM(t, f.issue()))
	f.refuses("does not belong", first)
	write(t, f.path("tls.key"), keyPEM(t, first))
	f.serves(first)
}

func TestPollingAloneNoticesChanges(t *testing.T) {
	// Events have no effect: the files are never left alone for so long.
	f, _ := newFolder(t, func(c *Config) { c.Poll, c.Settle = 20*time.Millisecond, time.Hour })
	next := f.issue()
	f.put(next)
	f.serves(next)
}

func TestReaderNeverSeesAMixedPair(t *testing.T) {
	f, _ := newFolder(t, func(c *Config) { c.Settle = time.Millisecond })
	stop := make(chan struct{})
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				c, err := f.source.GetCertificate(nil)
				if err != nil || !c.PrivateKey.(*ecdsa.PrivateKey).PublicKey.Equal(c.Leaf.PublicKey) {
					t.Errorf("%v: a certificate with another's key", err)
					return
				}
			}
		})
	}
	var last *tls.Certificate
	for range 50 {
		last = f.issue()
		f.put(last)
	}
	f.serves(last)
	close(stop)
	wg.Wait()
}

func TestFilesThatComeLater(t *testing.T) {
	f := &folder{t: t, domain: pkitest.New(t, "example.org", nil), dir: filepath.Join(t.TempDir(), "not", "there")}
	if _, err := New(Config{Certificate: f.path("tls.crt"), Key: f.path("tls.key"), Logger: f.log.logger()}); err == nil || !strings.Contains(err.Error(), "does not exist") {
		t.Errorf("%v", err)
	}
	f.start(func(c *Config) { c.MayAppear = true })
	_, changed, err := f.source.Current()
	if notReady, ok := errors.AsType[*identity.NotReady](err); !ok || !errors.Is(err, os.ErrNotExist) || !strings.Contains(notReady.Source, "tls.crt") {
		t.Errorf("%v", err)
	}
	if _, err := f.source.GetCertificate(nil); err == nil {
		t.Error("there is a certificate")
	}
	try(t, os.MkdirAll(f.dir, 0o700))
	c := f.issue()
	f.put(c)
	<-changed
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	snapshot, err := identity.Wait(ctx, f.source)
	try(t, err)
	if snapshot.ID.String() != "spiffe://example.org/web" || snapshot.Trust == nil {
		t.Errorf("%+v", snapshot)
	}
}

func TestBundlesAndLists(t *testing.T) {
	home, foreign := pkitest.New(t, "example.org", nil), pkitest.New(t, "other.example", nil)
	dir := t.TempDir()
	path := func(name string) string { return filepath.Join(dir, name) }
	c := home.Issue("/web", nil)
	root := func(d *pkitest.Domain) []byte {
		return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: d.Root().Cert.Raw})
	}
	list := revocationList(t, home.Issuing())
	write(t, path("pair.pem"), append(certPEM(c), keyPEM(t, c)...))
	write(t, path("bundle.pem"), root(home))
	write(t, path("foreign.pem"), root(foreign))
	write(t, path("list.pem"), pem.EncodeToMemory(&pem.Block{Type: "X509 CRL", Bytes: list}))
	write(t, path("list.der"), list)
	other := spiffeid.RequireTrustDomainFromString("other.example")
	var log lines
	good := func() Config {
		return Config{Logger: log.logger(), Certificate: path("pair.pem"), Bundle: path("bundle.pem"), CRLs: []string{path("list.pem"), path("list.der")},
			Federated: map[spiffeid.TrustDomain]string{other: path("foreign.pem")}}
	}
	s, err := New(good())
	try(t, err)
	snapshot, _, err := s.Current()
	try(t, err)
	if len(snapshot.Trust.Roots) != 2 || !snapshot.Trust.Roots[other][0].Equal(foreign.Root().Cert) || snapshot.Trust.CRLs == nil {
		t.Errorf("%+v", snapshot.Trust)
	}

	write(t, path("leaf.pem"), certPEM(c))
	write(t, path("leak.pem"), append(root(home), keyPEM(t, c)...))
	public := home.Issue("/web", func(c *x509.Certificate) { c.URIs, c.DNSNames = nil, []string{"www.example.org"} })
	write(t, path("public.pem"), append(certPEM(public), keyPEM(t, public)...))
	for _, row := range []struct {
		name, reason string
		change       func(*Config)
	}{
		{"a root that is a leaf", "is not a CA's", func(c *Config) { c.Bundle = path("leaf.pem") }},
		{"a bundle with a key", "private key in line", func(c *Config) { c.Bundle = path("leak.pem") }},
		{"a bundle of lists", "no CERTIFICATE block", func(c *Config) { c.Bundle = path("list.pem") }},
		{"a list of certificates", "no X509 CRL block", func(c *Config) { c.CRLs = []string{path("bundle.pem")} }},
		{"the own domain as foreign", "is the own trust domain", func(c *Config) {
			c.Federated = map[spiffeid.TrustDomain]string{spiffeid.RequireTrustDomainFromString("example.org"): path("foreign.pem")}
		}},
		{"a public certificate with roots of whom", "must say whose roots", func(c *Config) { c.Certificate = path("public.pem") }},
		{"nothing", "Config.Certificate is empty", func(c *Config) { *c = Config{} }},
		{"a key for nothing", "Config.Certificate is empty", func(c *Config) { c.Certificate, c.Key = "", path("pair.pem") }},
		{"only roots, of whom", "Config.TrustDomain must say", func(c *Config) { c.Certificate = "" }},
		{"a negative interval", "must not be negative", func(c *Config) { c.Poll = -1 }},
	} {
		t.Run(row.name, func(t *testing.T) {
			c := good()
			row.change(&c)
			if _, err := New(c); err == nil || !strings.Contains(err.Error(), row.reason) {
				t.Errorf("%v", err)
			}
			if strings.Contains(log.String(), "WARN") {
				t.Errorf("it is logged and returned:\n%s", log.String())
			}
		})
	}
	onlyVerify, err := New(Config{Logger: log.logger(), Bundle: path("bundle.pem"), TrustDomain: spiffeid.RequireTrustDomainFromString("example.org")})
	try(t, err)
	if snapshot, _, err := onlyVerify.Current(); err != nil || snapshot.Certificate != nil || len(snapshot.Trust.Roots) != 1 {
		t.Errorf("%v %+v", err, snapshot)
	}
	publicOnly, err := New(Config{Logger: log.logger(), Certificate: path("public.pem")})
	try(t, err)
	if snapshot, _, err := publicOnly.Current(); err != nil || !snapshot.ID.IsZero() || snapshot.Trust == nil {
		t.Errorf("%v %+v", err, snapshot)
	}
}
