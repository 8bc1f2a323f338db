package svid

import (
	"crypto/rand"
	"crypto/x509"
	"math/big"
	"net/netip"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	nodev1 "github.com/legation-io/legation/api/node/v1"
	"github.com/legation-io/legation/internal/agent/upstream"
	"github.com/legation-io/legation/internal/durable"
	"github.com/legation-io/legation/internal/sealed"
)

// machine has an address that changes, and notes what is superseded.
type machine struct {
	mu   sync.Mutex
	ip   string
	told []string
}

func (m *machine) addresses() []netip.Addr {
	m.mu.Lock()
	defer m.mu.Unlock()
	return []netip.Addr{netip.MustParseAddr(m.ip)}
}

func (m *machine) move(ip string) {
	m.mu.Lock()
	m.ip = ip
	m.mu.Unlock()
	time.Sleep(ownIPsEvery) // in the bubble
	synctest.Wait()
}

func (m *machine) superseded(serials []string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.told = append(m.told, serials...)
}

func (m *machine) want(t *testing.T, when string, serials ...string) {
	t.Helper()
	m.mu.Lock()
	defer m.mu.Unlock()
	if !slices.Equal(m.told, serials) {
		t.Errorf("%s: reported %v, want %v", when, m.told, serials)
	}
}

func ownIP(name, selector string) *nodev1.Entry {
	e := entry(name, selector)
	e.IncludeOwnIp = true
	return e
}

func TestACertificateWithAFormerAddressIsReportedOnceTheNewOneIsServedByAll(t *testing.T) {
	inBubble(t, func(w *world) {
		here := &machine{ip: "192.0.2.1"}
		m := w.run(Params{OwnIPs: here.addresses, Superseded: here.superseded})
		w.declare(ownIP("web", "unix:uid:1"))
		a, b := m.Subscribe(web, "uid/1"), m.Subscribe(web, "uid/1")
		defer a.Close()
		old := w.next(a).SVIDs[0]
		w.next(b)
		a.Served(old)
		here.want(t, "nothing changed")
		here.move("192.0.2.2")
		fresh := w.next(a).SVIDs[0]
		if fresh.Serial == old.Serial {
			t.Fatal("not signed anew")
		}
		here.want(t, "nobody presents the new one")
		a.Served(fresh)
		here.want(t, "one still presents the old one")
		b.Close() // it presents nothing any more
		here.want(t, "the other has ended", old.Serial)
		if got := m.Superseded(); !slices.Equal(got, []string{old.Serial}) {
			t.Errorf("to be told after a reconnect: %v", got)
		}
		w.change(func(v *upstream.View) { v.CRLs = map[string]*nodev1.CRL{"default": w.crl(old.Serial)} })
		if got := m.Superseded(); len(got) != 0 {
			t.Errorf("the CRL has it, and it is still to be told: %v", got)
		}
	})
}

func TestARenewalSupersedesNothing(t *testing.T) {
	inBubble(t, func(w *world) {
		here := &machine{ip: "192.0.2.1"}
		m := w.run(Params{OwnIPs: here.addresses, Superseded: here.superseded})
		w.declare(ownIP("web", "unix:uid:1"))
		s := m.Subscribe(web, "uid/1")
		defer s.Close()
		s.Served(w.next(s).SVIDs[0])
		time.Sleep(15 * time.Hour)
		synctest.Wait()
		s.Served(w.next(s).SVIDs[0])
		here.want(t, "renewed")
	})
}

func TestAnInstanceWithAddressesOfItsOwnHasThose(t *testing.T) {
	inBubble(t, func(w *world) {
		here, there := &machine{ip: "192.0.2.1"}, &machine{ip: "198.51.100.1"}
		m := w.run(Params{OwnIPs: here.addresses, Superseded: here.superseded})
		w.declare(ownIP("web", "unix:uid:1"))
		s := m.SubscribeAt(web, "session/1", func() ([]netip.Addr, error) { return there.addresses(), nil })
		defer s.Close()
		old := w.next(s).SVIDs[0]
		if got := old.addresses; len(got) != 1 || got[0].String() != "198.51.100.1" {
			t.Errorf("signed for %v", got)
		}
		here.move("192.0.2.9")
		w.quiet(s, 5*time.Second)
		there.move("198.51.100.2")
		s.Served(w.next(s).SVIDs[0])
		here.want(t, "its own address changed", old.Serial)
	})
}

func TestWhatIsSupersededOutlivesARestart(t *testing.T) {
	inBubble(t, func(w *world) {
		box, err := sealed.Open(durable.OS, filepath.Join(t.TempDir(), "cache"))
		if err != nil {
			t.Fatal(err)
		}
		here := &machine{ip: "192.0.2.1"}
		p := Params{OwnIPs: here.addresses, Superseded: here.superseded, Sealed: box}
		m := w.run(p)
		w.declare(ownIP("web", "unix:uid:1"))
		s := m.Subscribe(web, "uid/1")
		old := w.next(s).SVIDs[0]
		here.move("192.0.2.2")
		w.next(s)
		synctest.Wait()
		w.stop() // before anybody served the new one
		m = w.run(p)
		again := m.Subscribe(web, "uid/1")
		fresh := w.next(again).SVIDs[0]
		here.want(t, "after the restart")
		again.Served(fresh)
		here.want(t, "served after the restart", old.Serial)
		synctest.Wait()
		w.stop()
		m = w.run(p)
		if got := m.Superseded(); !slices.Equal(got, []string{old.Serial}) {
			t.Errorf("to be told after the second restart: %v", got)
		}
	})
}

// crl is a list with one serial, as the authority would sign it.
func (w *world) crl(serial string) *nodev1.CRL {
	w.t.Helper()
	n, ok := new(big.Int).SetString(serial, 16)
	if !ok {
		w.t.Fatalf("serial %q", serial)
	}
	issuer := *w.root
	issuer.KeyUsage |= x509.KeyUsageCRLSign
	issuer.SubjectKeyId = []byte{1}
	der, err := x509.CreateRevocationList(rand.Reader, &x509.RevocationList{
		Number: big.NewInt(2), ThisUpdate: time.Now(), NextUpdate: time.Now().Add(time.Hour),
		RevokedCertificateEntries: []x509.RevocationListEntry{{SerialNumber: n, RevocationTime: time.Now()}},
	}, &issuer, w.key)
	if err != nil {
		w.t.Fatal(err)
	}
	return &nodev1.CRL{Authority: "default", Number: 2, Lists: [][]byte{der}}
}
