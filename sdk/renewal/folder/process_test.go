//go:build unix

package folder

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
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"math/big"
	mathrand "math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/legation-io/legation/sdk/drain"
	"github.com/legation-io/legation/sdk/internal/durable"
	"github.com/legation-io/legation/sdk/renewal"
	"github.com/legation-io/legation/sdk/renewal/storetest"
)

// The tests below run this binary again as a program that renews what a
// folder declares, and end it in every way. Its CA keeps what it issued on
// the disk, like one that is elsewhere.

const asProgram = "LEGATION_RENEWAL_FOLDER"

func TestMain(m *testing.M) {
	if dir := os.Getenv(asProgram); dir != "" {
		if err := program(dir); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

func program(dir string) error {
	log := slog.New(slog.NewTextHandler(os.Stderr, nil))
	store, err := Open(Config{Dir: filepath.Join(dir, "certs"), State: filepath.Join(dir, "state"), Logger: log})
	if err != nil {
		return err
	}
	takes, err := time.ParseDuration(os.Getenv("TAKES"))
	if err != nil {
		return err
	}
	wait, err := time.ParseDuration(os.Getenv("DRAIN"))
	if err != nil {
		return err
	}
	ca, err := loadCA(dir)
	if err != nil {
		return err
	}
	s, err := renewal.New(renewal.Config{
		Store: store, Issuers: renewal.Static(map[string]renewal.Issuer{"ca": &diskCA{ca, filepath.Join(dir, "ca"), takes}}),
		Filters: renewal.FilterFile(filepath.Join(dir, "filter.yaml")), Drain: wait, Logger: log,
	})
	if err != nil {
		return err
	}
	return drain.Run(context.Background(), drain.Config{Reload: []func() error{s.Reload}, Deadline: 2 * time.Minute, Logger: log}, drain.Background("renewals", s.Run))
}

// diskCA says on stdout what it does.
type diskCA struct {
	*renewal.CA
	dir   string
	takes time.Duration
}

func (ca *diskCA) Issue(ctx context.Context, r *renewal.Request) (*renewal.Issued, error) {
	fmt.Println("asked", r.Certificate)
	select {
	case <-ctx.Done():
		return nil, ctx.Err()
	case <-time.After(ca.takes):
	}
	out, err := ca.CA.Issue(ctx, r)
	if err != nil {
		return nil, err
	}
	raw, err := json.Marshal(out)
	if err != nil {
		return nil, err
	}
	aside := filepath.Join(filepath.Dir(ca.dir), rand.Text())
	if err := durable.Create(aside, raw); err != nil {
		return nil, err
	}
	if err := os.Link(aside, filepath.Join(ca.dir, r.ID)); err != nil { // fails when it exists
		return nil, renewal.Permanent("issued twice: %w", err)
	}
	if err := durable.SyncDir(ca.dir); err != nil {
		return nil, err
	}
	fmt.Println("issued", r.Certificate)
	return out, nil
}

func (ca *diskCA) Find(_ context.Context, r *renewal.Request) (*renewal.Issued, error) {
	raw, err := os.ReadFile(filepath.Join(ca.dir, r.ID))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, renewal.ErrNotIssued
	}
	if err != nil {
		return nil, err
	}
	out := &renewal.Issued{}
	if err := json.Unmarshal(raw, out); err != nil {
		return nil, err
	}
	fmt.Println("found", r.Certificate)
	return out, nil
}

func loadCA(dir string) (*renewal.CA, error) {
	pair, err := tls.LoadX509KeyPair(filepath.Join(dir, "ca.crt"), filepath.Join(dir, "ca.key"))
	if err != nil {
		return nil, err
	}
	return &renewal.CA{Certificate: pair.Leaf, Key: pair.PrivateKey.(*ecdsa.PrivateKey), Duration: time.Hour}, nil
}

// site is what the programs work on.
type site struct {
	t   *testing.T
	dir string
	f   *Folder
}

func newSite(t *testing.T, names ...string) *site {
	t.Helper()
	s := &site{t: t, dir: t.TempDir()}
	for _, d := range []string{"certs", "ca"} {
		if err := os.Mkdir(filepath.Join(s.dir, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "root"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(1000 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	keyDER, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	for name, block := range map[string]string{"ca.crt": pemText("CERTIFICATE", der), "ca.key": pemText("EC PRIVATE KEY", keyDER), "filter.yaml": ""} {
		if err := os.WriteFile(filepath.Join(s.dir, name), []byte(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range names {
		declare(t, s.dir, name+".yaml", yamlOf(t, storetest.Certificate(name)))
	}
	s.f = open(t, s.dir, nil)
	return s
}

// process is one run of the program.
type process struct {
	*exec.Cmd
	t     *testing.T
	lines chan string
	log   strings.Builder
}

func (s *site) start(takes, drain time.Duration) *process {
	s.t.Helper()
	exe, err := os.Executable()
	if err != nil {
		s.t.Fatal(err)
	}
	p := &process{Cmd: exec.Command(exe), t: s.t, lines: make(chan string, 1000)}
	p.Env = append(os.Environ(), asProgram+"="+s.dir, "TAKES="+takes.String(), "DRAIN="+drain.String())
	p.Stderr = &p.log
	out, err := p.StdoutPipe()
	if err != nil {
		s.t.Fatal(err)
	}
	if err := p.Start(); err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() {
		p.Process.Kill()
		p.Wait() // of one that has ended, an error; its log is whole either way
		if s.t.Failed() {
			s.t.Log(p.log.String())
		}
	})
	go func() {
		defer close(p.lines)
		for scan := bufio.NewScanner(out); scan.Scan(); {
			p.lines <- scan.Text()
		}
	}()
	return p
}

// expect waits for a line.
func (p *process) expect(want string) {
	p.t.Helper()
	deadline := time.After(time.Minute)
	for {
		select {
		case line, ok := <-p.lines:
			if !ok {
				p.t.Fatalf("it ended before it said %q", want)
			}
			if line == want {
				return
			}
		case <-deadline:
			p.t.Fatalf("it did not say %q", want)
		}
	}
}

// end waits for it to end and returns how long that took.
func (p *process) end(sig os.Signal) (time.Duration, error) {
	p.t.Helper()
	if err := p.Process.Signal(sig); err != nil {
		p.t.Fatal(err)
	}
	began := time.Now()
	for range p.lines {
	}
	err := p.Wait()
	return time.Since(began), err
}

func (s *site) certificate(name string) *renewal.Certificate {
	s.t.Helper()
	c, err := s.f.Get(s.t.Context(), renewal.Key{Namespace: "shop", Name: name})
	if err != nil {
		s.t.Fatal(err)
	}
	return c
}

// ready checks that a certificate and its key are whole.
func (s *site) ready(name string) *renewal.Certificate {
	s.t.Helper()
	c := s.certificate(name)
	secret, err := s.f.GetSecret(s.t.Context(), "shop", name+"-tls")
	if err != nil {
		s.t.Fatal(err)
	}
	if _, err := secret.TLS(); err != nil {
		s.t.Fatal(err)
	}
	if _, err := tls.LoadX509KeyPair(filepath.Join(s.f.SecretDir("shop", name+"-tls"), "tls.crt"), filepath.Join(s.f.SecretDir("shop", name+"-tls"), "tls.key")); err != nil {
		s.t.Fatal(err)
	}
	if !c.Status.Is(renewal.Ready) || c.Status.Condition(renewal.Issuing) != nil {
		s.t.Fatalf("%s: %+v", name, c.Status)
	}
	return c
}

func (s *site) issued() int {
	s.t.Helper()
	entries, err := os.ReadDir(filepath.Join(s.dir, "ca"))
	if err != nil {
		s.t.Fatal(err)
	}
	return len(entries)
}

func TestSIGTERMInTheMiddleOfAnIssuance(t *testing.T) {
	t.Run("it is finished within the drain", func(t *testing.T) {
		s := newSite(t, "a")
		p := s.start(700*time.Millisecond, time.Minute)
		p.expect("asked shop/a")
		if took, err := p.end(syscall.SIGTERM); err != nil || took > 50*time.Second {
			t.Fatalf("it ended after %s: %v", took, err)
		}
		s.ready("a")
	})
	t.Run("it is cancelled after the drain and taken up by the next start", func(t *testing.T) {
		s := newSite(t, "a")
		p := s.start(time.Hour, 100*time.Millisecond)
		p.expect("asked shop/a")
		if took, err := p.end(syscall.SIGTERM); err != nil || took > 50*time.Second {
			t.Fatalf("it ended after %s: %v", took, err)
		}
		c := s.certificate("a")
		if !c.Status.Is(renewal.Issuing) || c.Status.LastFailureTime != nil {
			t.Errorf("after the end: %+v", c.Status)
		}
		before, err := s.f.GetSecret(t.Context(), "shop", *c.Status.NextPrivateKeySecretName)
		if err != nil {
			t.Fatal(err)
		}
		p = s.start(0, time.Minute)
		p.expect("issued shop/a")
		if _, err := p.end(syscall.SIGTERM); err != nil {
			t.Fatal(err)
		}
		s.ready("a")
		after, err := s.f.GetSecret(t.Context(), "shop", "a-tls")
		if err != nil {
			t.Fatal(err)
		}
		if string(after.Data[renewal.TLSKey]) != string(before.Data[renewal.TLSKey]) {
			t.Error("it was another key than the one that was kept for it")
		}
	})
}

// TestWhoIsStoppedWhileItWritesAStatusHoldsNobodyUpForEver: another process,
// that is; and what could not be taken over meanwhile is, as soon as it can.
func TestWhoIsStoppedWhileItWritesAStatusHoldsNobodyUpForEver(t *testing.T) {
	dir := t.TempDir()
	c := storetest.Certificate("a")
	declare(t, dir, "a.yaml", yamlOf(t, c))
	f := open(t, dir, nil)
	stopped, err := lock(filepath.Join(dir, "state", "status.lock"))
	if err != nil {
		t.Fatal(err)
	}
	got, err := f.Get(t.Context(), c.Key())
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if err := f.UpdateStatus(ctx, got); !errors.Is(err, context.DeadlineExceeded) || !errors.Is(err, errLocked) {
		t.Errorf("a write ended with %v", err)
	}
	c.Spec.DNSNames = []string{"new.example.org"}
	declare(t, dir, "a.yaml", yamlOf(t, c))
	if _, err := f.scan(ctx); !errors.Is(err, errLocked) {
		t.Errorf("a look ended with %v", err)
	}
	if _, err := f.Get(t.Context(), c.Key()); err != nil {
		t.Errorf("a read: %v", err)
	}
	if err := stopped.Close(); err != nil {
		t.Fatal(err)
	}
	f.rescan(t.Context())
	if got, err := f.Get(t.Context(), c.Key()); err != nil || got.Spec.DNSNames[0] != "new.example.org" || got.Metadata.Generation != 2 {
		t.Errorf("afterwards: %+v, %v", got, err)
	}
}

func TestSIGHUPReadsTheFilterWithoutAPause(t *testing.T) {
	s := newSite(t, "a", "b", "c")
	filter := func(text string) {
		if err := os.WriteFile(filepath.Join(s.dir, "filter.yaml"), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	filter("names: [a]")
	p := s.start(500*time.Millisecond, time.Minute)
	p.expect("asked shop/a")
	filter("names: [b]")
	if err := p.Process.Signal(syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
	p.expect("asked shop/b") // while a is still running: MaxConcurrent is five
	filter("names: [c")      // a mistake
	if err := p.Process.Signal(syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
	p.expect("issued shop/b")
	if _, err := p.end(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	s.ready("a")
	s.ready("b")
	if c := s.certificate("c"); len(c.Status.Conditions) != 0 {
		t.Errorf("c: %+v", c.Status)
	}
	if log := p.log.String(); !strings.Contains(log, "the last good filter stays") || !strings.Contains(log, "filter.yaml") {
		t.Error("the bad filter is not told of")
	}
}

// TestKilledAgainAndAgain: kill -9 at any moment, and start again. In the end
// every certificate is whole and no request was issued twice.
func TestKilledAgainAndAgain(t *testing.T) {
	names := []string{"a", "b", "c", "d", "e", "f", "g", "h"}
	s := newSite(t, names...)
	kills := 15
	for range kills {
		p := s.start(20*time.Millisecond, time.Minute)
		select {
		case <-p.lines: // something happens; kill it soon after
		case <-time.After(2 * time.Second): // nothing left to do
		}
		time.Sleep(time.Duration(mathrand.IntN(60)) * time.Millisecond)
		p.end(syscall.SIGKILL)
		if strings.Contains(p.log.String(), "issued twice") {
			t.Fatal("a request was issued twice")
		}
		for _, name := range names { // more work for the next
			if c := s.certificate(name); c.Status.Is(renewal.Ready) && c.Status.Condition(renewal.Issuing) == nil {
				if err := renewal.Trigger(t.Context(), s.f, c.Key()); err != nil {
					t.Fatal(err)
				}
				break
			}
		}
	}
	p := s.start(0, time.Minute)
	deadline := time.Now().Add(time.Minute)
	for {
		left := 0
		for _, name := range names {
			if c := s.certificate(name); !c.Status.Is(renewal.Ready) || c.Status.Condition(renewal.Issuing) != nil {
				left++
			}
		}
		// Of an issuance that was finished just before a kill: the next start tidies up.
		requests, err := filepath.Glob(filepath.Join(s.dir, "state", "secrets", "shop", "*next-private-key"))
		if err != nil {
			t.Fatal(err)
		}
		if left += len(requests); left == 0 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("%d certificates are not whole", left)
		}
		time.Sleep(10 * time.Millisecond)
	}
	if _, err := p.end(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	revisions := 0
	for _, name := range names {
		revisions += *s.ready(name).Status.Revision
	}
	if got := s.issued(); got != revisions {
		t.Errorf("the CA issued %d certificates for %d revisions", got, revisions)
	}
	t.Logf("%d kills, %d certificates issued for %d names", kills, s.issued(), len(names))
	left, err := filepath.Glob(filepath.Join(s.dir, "state", "secrets", "shop", "*next-private-key"))
	if err != nil || len(left) > 0 {
		t.Errorf("left over: %v (%v)", left, err)
	}
}
