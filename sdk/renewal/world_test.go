package renewal

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"fmt"
	"log/slog"
	"math/big"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// newCA makes a root.
func newCA(t testing.TB, life time.Duration) *CA {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test root"}, NotBefore: now.Add(-time.Hour), NotAfter: now.Add(life),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	root, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return &CA{Certificate: root, Key: key}
}

// certificate is a spec that is quick to issue.
func certificate(name string, change ...func(*CertificateSpec)) *Certificate {
	c := &Certificate{
		Metadata: ObjectMeta{Name: name, Namespace: "default"},
		Spec: CertificateSpec{
			SecretName: name + "-tls", DNSNames: []string{name + ".example.org"}, IssuerRef: IssuerRef{Name: "ca"},
			PrivateKey: &CertificatePrivateKey{Algorithm: ECDSA},
		},
	}
	for _, f := range change {
		f(&c.Spec)
	}
	return c
}

func lives(d time.Duration) func(*CertificateSpec) {
	return func(s *CertificateSpec) { s.Duration = NewDuration(d) }
}

// event is one issuance at the CA.
type event struct {
	at   time.Time
	key  Key
	id   string
	from int // how many ran at once, itself included
}

// watchful is an Issuer that a test looks at and leans on.
type watchful struct {
	Issuer
	takes time.Duration
	fails func(*Request) error // before the CA is asked
	lost  func(*Request) error // after the CA issued

	mu      sync.Mutex
	running int
	most    int
	events  []event
	asked   int
	found   int
}

func (w *watchful) Issue(ctx context.Context, r *Request) (*Issued, error) {
	w.mu.Lock()
	w.asked++
	w.running++
	w.most = max(w.most, w.running)
	takes, fails, lost := w.takes, w.fails, w.lost
	w.mu.Unlock()
	defer func() {
		w.mu.Lock()
		w.running--
		w.mu.Unlock()
	}()
	if takes > 0 {
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(takes):
		}
	}
	if fails != nil {
		if err := fails(r); err != nil {
			return nil, err
		}
	}
	out, err := w.Issuer.Issue(ctx, r)
	if err != nil {
		return nil, err
	}
	w.mu.Lock()
	w.events = append(w.events, event{time.Now(), r.Certificate, r.ID, w.running})
	w.mu.Unlock()
	if lost != nil {
		if err := lost(r); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// lean changes how it behaves.
func (w *watchful) lean(change func(*watchful)) {
	w.mu.Lock()
	defer w.mu.Unlock()
	change(w)
}

func (w *watchful) Find(ctx context.Context, r *Request) (*Issued, error) {
	w.mu.Lock()
	w.found++
	w.mu.Unlock()
	return w.Issuer.(Finder).Find(ctx, r)
}

// count is how often it was asked, asked what became of a request, or how many
// issuances ran at once at most.
func (w *watchful) count(what string) int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return map[string]int{"asked": w.asked, "found": w.found, "most": w.most}[what]
}

func (w *watchful) seen() []event {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clone(w.events)
}

// world is a Scheduler at work in a synctest bubble.
type world struct {
	t      *testing.T
	store  *Memory
	ca     *watchful
	sched  *Scheduler
	cancel context.CancelFunc
	ended  chan error
}

func newWorld(t *testing.T, change func(*Config), list ...*Certificate) *world {
	t.Helper()
	store, err := NewMemory(list...)
	if err != nil {
		t.Fatal(err)
	}
	w := &world{t: t, store: store, ca: &watchful{Issuer: newCA(t, 20*365*24*time.Hour)}}
	cfg := Config{Store: store, Issuers: func(_ string, ref IssuerRef) Issuer {
		if ref.Name == "ca" {
			return w.ca
		}
		return nil
	}, Logger: slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelWarn}))}
	if change != nil {
		change(&cfg)
	}
	if w.sched, err = New(cfg); err != nil {
		t.Fatal(err)
	}
	return w
}

func (w *world) start() {
	ctx, cancel := context.WithCancel(context.Background())
	w.cancel, w.ended = cancel, make(chan error, 1)
	go func() { w.ended <- w.sched.Run(ctx) }()
	w.t.Cleanup(func() { cancel() })
	synctest.Wait()
}

func (w *world) stop() {
	w.t.Helper()
	w.cancel()
	if err := <-w.ended; err != nil {
		w.t.Error(err)
	}
}

// sleep lets fake time pass and everything settle.
func sleep(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

func (w *world) get(name string) *Certificate {
	w.t.Helper()
	c, err := w.store.Get(context.Background(), Key{"default", name})
	if err != nil {
		w.t.Fatalf("%s: %v", name, err)
	}
	return c
}

func (w *world) want(name string, condition ConditionType, status ConditionStatus, reason string) *Certificate {
	w.t.Helper()
	c := w.get(name)
	got := c.Status.Condition(condition)
	if got == nil || got.Status != status || reason != "" && got.Reason != reason {
		w.t.Fatalf("%s: condition %s is %+v; want %s, %s", name, condition, got, status, reason)
	}
	return c
}

func (w *world) revision(name string) int {
	w.t.Helper()
	if r := w.get(name).Status.Revision; r != nil {
		return *r
	}
	return 0
}

func names(n int) []string {
	out := make([]string, n)
	for i := range out {
		out[i] = fmt.Sprintf("c%05d", i)
	}
	return out
}
