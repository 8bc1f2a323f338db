package ca

import (
	"context"
	"crypto/sha256"
	"crypto/x509"
	"fmt"
	"net/netip"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/legation-io/legation/internal/fault"
	"github.com/legation-io/legation/internal/ledger"
	"github.com/legation-io/legation/internal/store"
)

const (
	maxBatch    = 1024
	maxInFlight = 8192
	// maxRaces bounds how often one batch meets a new CRL while it commits.
	maxRaces = 16
)

// signed is one item of a batch on its way.
type signed struct {
	req    *X509Request
	cert   *x509.Certificate
	reason string
	key    [32]byte
	err    error
}

// SignX509 signs a batch; one bad item refuses that item alone. Results have
// the order of the requests. A certificate is in the journal before it is
// returned, in a transaction that holds only while no CRL was published since
// its identity was looked up: nothing signed for an identity can miss the
// revocation of it.
func (a *Authority) SignX509(ctx context.Context, reqs []X509Request) []X509Result {
	start := time.Now()
	items := make([]signed, len(reqs))
	for i := range reqs {
		items[i].req = &reqs[i]
	}
	if err := a.admit(len(reqs)); err != nil {
		for i := range items {
			items[i].err = err
		}
	} else {
		a.signBatch(ctx, items)
		a.inFlight.Add(int64(-len(reqs)))
	}
	results := make([]X509Result, len(items))
	for i := range items {
		results[i] = a.result(&items[i])
	}
	a.metric.signSeconds.Observe(time.Since(start).Seconds())
	return results
}

// admit bounds what is being signed at once.
func (a *Authority) admit(n int) error {
	if n > maxBatch {
		return fault.New(fault.Limited, "%d requests in one batch, over the limit of %d; split it", n, maxBatch)
	}
	if a.inFlight.Add(int64(n)) > maxInFlight {
		a.inFlight.Add(int64(-n))
		return fault.New(fault.Limited, "%d requests are being signed already; try again later", maxInFlight)
	}
	return nil
}

func (a *Authority) signBatch(ctx context.Context, items []signed) {
	fail := func(err error) {
		for i := range items {
			if items[i].err == nil {
				items[i].err = err
			}
		}
	}
	now, err := a.guard.Check()
	if err != nil {
		fail(err)
		return
	}
	state := a.state.Get()
	parallel(len(items), func(i int) {
		if err := ctx.Err(); err != nil {
			items[i].err = err
			return
		}
		items[i].err = a.signOne(&items[i], state, now)
	})
	a.failpoint("x509:signed")
	fail(a.record(ctx, items, state, now))
	a.failpoint("x509:recorded")
}

// parallel calls f for 0..n-1 on up to GOMAXPROCS goroutines and waits.
func parallel(n int, f func(i int)) {
	workers := min(runtime.GOMAXPROCS(0), n)
	if workers <= 1 {
		for i := range n {
			f(i)
		}
		return
	}
	var next atomic.Int64
	var wg sync.WaitGroup
	for range workers {
		wg.Go(func() {
			for i := int(next.Add(1)) - 1; i < n; i = int(next.Add(1)) - 1 {
				f(i)
			}
		})
	}
	wg.Wait()
}

// signOne decides, signs and checks what was signed.
func (a *Authority) signOne(item *signed, state *State, now time.Time) error {
	req := item.req
	if !slices.Contains(profiles[:], req.Profile) {
		return fault.New(fault.Invalid, "certificate profile %q is unknown", req.Profile)
	}
	if err := a.checkID(req.Profile, req.ID, req.Node); err != nil {
		return err
	}
	if err := state.blocks(req.ID.String(), req.Node); err != nil {
		return err
	}
	dns, ips, err := checkNames(req.DNSNames, req.IPs)
	if err != nil {
		return err
	}
	csr, err := parseCSR(req.CSR, req.ID)
	if err != nil {
		return err
	}
	item.key = spkiHash(csr.spki)
	if err := a.checkKnownKey(state, item.key); err != nil {
		return err
	}
	notBefore, notAfter, reason, err := a.x509Validity(now, req.TTL)
	if err != nil {
		return err
	}
	if err := a.lintOnce(req.Profile, now); err != nil {
		return err
	}
	l := leaf{
		profile: req.Profile, serial: newSerial(), notBefore: notBefore, notAfter: notAfter,
		uri: req.ID.String(), dns: dns, ips: ips, ski: csr.ski, spki: csr.spki,
	}
	der, err := a.form.sign(&l)
	if err != nil {
		return fmt.Errorf("sign %s with issuer %s: %w", req.ID, a.issuing.Subject.CommonName, err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return fmt.Errorf("sign %s: what was signed cannot be read: %w", req.ID, err)
	}
	if err := checkSigned(cert, &l, csr.public); err != nil {
		return fmt.Errorf("sign %s: %w", req.ID, err)
	}
	item.cert, item.reason = cert, reason
	return nil
}

// checkKnownKey refuses the authority's own keys and those of revoked
// certificates: whoever was revoked makes a new key.
func (a *Authority) checkKnownKey(state *State, key [32]byte) error {
	if a.ownKeys[key] {
		return fault.New(fault.Denied, "the request's key is an authority's own")
	}
	if state.revokedKeys[keyTag(key[:16])] {
		return fault.New(fault.Denied, "the request's key belongs to a revoked certificate; make a new key")
	}
	return nil
}

var profiles = [...]Profile{ProfileWorkload, ProfileAgent, ProfileServer, ProfileOperator}

// record puts the batch into the journal. A CRL that was published since
// state makes it look again at who is blocked.
func (a *Authority) record(ctx context.Context, items []signed, state *State, now time.Time) error {
	for range maxRaces {
		records := make([]ledger.Record, 0, len(items))
		for i := range items {
			if items[i].err == nil {
				records = append(records, items[i].record(now))
			}
		}
		if len(records) == 0 {
			return nil
		}
		err := a.journal.RecordIf(ctx, records, store.Cond{Key: a.crlKey(), Revision: state.crlRevision})
		if err == nil {
			a.lookAgain(items)
			return nil
		}
		if !lostRace(err) {
			return err
		}
		if state, err = a.newerThan(ctx, state); err != nil {
			return err
		}
		for i := range items {
			if it := &items[i]; it.err == nil {
				if it.err = state.blocks(it.req.ID.String(), it.req.Node); it.err == nil {
					it.err = a.checkKnownKey(state, it.key)
				}
			}
		}
	}
	return fault.New(fault.Unavailable, "record issuance: revocations kept coming in between, %d times; try again", maxRaces)
}

// lookAgain keeps back what was revoked between its record and now.
func (a *Authority) lookAgain(items []signed) {
	state := a.state.Get()
	for i := range items {
		if it := &items[i]; it.err == nil {
			it.err = state.blocks(it.req.ID.String(), it.req.Node)
		}
	}
}

func (s *signed) record(now time.Time) ledger.Record {
	r := ledger.Record{
		Kind: ledger.KindX509, Authority: DefaultName, Profile: string(s.req.Profile), Serial: serialHex(s.cert.SerialNumber),
		SPIFFEID: s.req.ID.String(), Namespace: s.req.Namespace, Entry: s.req.Entry, Node: s.req.Node, Instance: s.req.Instance,
		IssuedAt: now, NotBefore: s.cert.NotBefore, NotAfter: s.cert.NotAfter, DNSNames: s.cert.DNSNames,
		SHA256: sha256.Sum256(s.cert.Raw), KeySHA256: s.key, LifetimeReason: s.reason,
	}
	for _, ip := range s.cert.IPAddresses {
		if addr, ok := netip.AddrFromSlice(ip); ok {
			r.IPs = append(r.IPs, addr.Unmap())
		}
	}
	return r
}

func (a *Authority) result(s *signed) X509Result {
	if s.err != nil {
		a.metric.signed.WithLabelValues(profileLabel(s.req.Profile), string(fault.KindOf(s.err))).Inc()
		return X509Result{Err: s.err}
	}
	a.metric.signed.WithLabelValues(string(s.req.Profile), "ok").Inc()
	return X509Result{
		Chain: [][]byte{s.cert.Raw, a.issuing.Raw}, Serial: serialHex(s.cert.SerialNumber),
		NotBefore: s.cert.NotBefore, NotAfter: s.cert.NotAfter, LifetimeReason: s.reason,
	}
}

// profileLabel keeps what a caller typed out of metric labels.
func profileLabel(p Profile) string {
	if slices.Contains(profiles[:], p) {
		return string(p)
	}
	return "unknown"
}
