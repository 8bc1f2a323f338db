// Package ca answers "may this be signed, and what is revoked": issuing
// authorities with their chains, X.509-SVIDs and JWT-SVIDs, certificate
// revocation lists and the blocks behind them. Whoever calls has authorised
// the identity for the caller; keys live in ca/custody, what was signed is in
// package ledger before it leaves.
package ca

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/legation-io/legation/internal/ca/custody"
	"github.com/legation-io/legation/internal/clock"
	"github.com/legation-io/legation/internal/fault"
	"github.com/legation-io/legation/internal/latest"
	"github.com/legation-io/legation/internal/ledger"
	"github.com/legation-io/legation/internal/store"
)

// DefaultName is the first authority's.
const DefaultName = "default"

// Params is what an Authority needs.
type Params struct {
	Store       store.Store
	Custody     custody.Provider
	Journal     *ledger.Journal
	Clock       clock.Clock // nil, or the Journal's
	TrustDomain spiffeid.TrustDomain
	// Cluster is the claim "cluster" of JWT-SVIDs; empty leaves it out.
	Cluster   string
	Lifetimes Lifetimes
	// HeartbeatEvery is how often Run signs that the CRL is current; 0 is 10 s.
	HeartbeatEvery time.Duration
	Log            *slog.Logger // nil: discarded
	Registerer     prometheus.Registerer
}

// Authority signs for one trust domain. It is safe for concurrent use. Its
// replicas share everything but the heartbeat through the store.
type Authority struct {
	store     store.Store
	journal   *ledger.Journal
	guard     *ledger.Guard
	td        spiffeid.TrustDomain
	cluster   string
	life      Lifetimes
	beatEvery time.Duration
	log       *slog.Logger
	metric    metrics

	object     authorityObject
	root       *x509.Certificate
	issuing    *x509.Certificate
	issuingKey crypto.Signer
	form       *form // of the issuing CA
	jwtKey     crypto.Signer
	ownKeys    map[[32]byte]bool // SPKI hashes that no leaf may carry
	linted     [len(profiles)]lintOnce

	inFlight atomic.Int64 // requests being signed

	// revoking is held by whoever makes the next CRL here; other replicas are
	// met by compare-and-set.
	revoking chan struct{}

	// reading is held by whoever reads the store because a CRL was missed.
	reading chan struct{}

	mu    sync.Mutex // guards known and beat; never held across I/O
	known known

	state latest.Value[*State] // replaced under mu

	// failpoint is called at named moments; tests crash there.
	failpoint func(name string)
}

// Open opens the authority "default", and creates it when the store has
// none: keys first (an interrupted start leaves at most a sealed key that
// nothing names), then chain, first CRLs and key names in one transaction.
// fault.Unavailable when the clock is not to be believed.
func Open(ctx context.Context, p Params) (*Authority, error) {
	return open(ctx, p, func(string) {})
}

func open(ctx context.Context, p Params, failpoint func(string)) (*Authority, error) {
	if p.Store == nil || p.Custody == nil || p.Journal == nil || p.TrustDomain.IsZero() {
		return nil, errors.New("open authority: a store, a custody provider, a journal and a trust domain are needed")
	}
	life, err := p.Lifetimes.withDefaults()
	if err != nil {
		return nil, err
	}
	if p.Clock != nil && p.Clock != p.Journal.Guard().Clock() {
		return nil, errors.New("open authority: the clock is not the journal's, whose guard judges it")
	}
	if p.Log == nil {
		p.Log = slog.New(slog.DiscardHandler)
	}
	if p.HeartbeatEvery <= 0 {
		p.HeartbeatEvery = 10 * time.Second
	}
	a := &Authority{
		store: p.Store, journal: p.Journal, guard: p.Journal.Guard(), td: p.TrustDomain, cluster: p.Cluster, life: life,
		beatEvery: p.HeartbeatEvery, log: p.Log, metric: newMetrics(p.Registerer),
		revoking: make(chan struct{}, 1), reading: make(chan struct{}, 1), failpoint: failpoint,
	}
	a.known.revocations = make(map[string]knownRevocation)

	kv, err := p.Store.Get(ctx, a.objectKey())
	if fault.Is(err, fault.NotFound) {
		if err = a.create(ctx, p.Custody); err == nil || fault.Is(err, fault.Conflict) {
			kv, err = p.Store.Get(ctx, a.objectKey()) // ours, or that of the replica that won
		}
	}
	if err != nil {
		return nil, fmt.Errorf("open authority %s: %w", DefaultName, err)
	}
	if err := a.load(ctx, kv.Value, p.Custody); err != nil {
		return nil, fmt.Errorf("open authority %s: %w", DefaultName, err)
	}
	if err := a.reload(ctx); err != nil {
		return nil, fmt.Errorf("open authority %s: %w", DefaultName, err)
	}
	if err := a.beat(ctx); err != nil {
		return nil, fmt.Errorf("open authority %s: %w", DefaultName, err)
	}
	a.metric.issuingEnds.Set(float64(a.issuing.NotAfter.Unix()))
	a.metric.rootEnds.Set(float64(a.root.NotAfter.Unix()))
	return a, nil
}

// load checks a stored authority and opens its keys.
func (a *Authority) load(ctx context.Context, value []byte, keys custody.Provider) error {
	if err := decodeObject(value, kindAuthority, &a.object); err != nil {
		return err
	}
	if a.object.TrustDomain != a.td.Name() {
		return fault.New(fault.Invalid, "the stored authority is of trust domain %q, this server of %q: a trust domain's name is final", a.object.TrustDomain, a.td.Name())
	}
	var err error
	if a.root, err = x509.ParseCertificate(a.object.RootCert); err != nil {
		return fmt.Errorf("stored root certificate: %w", err)
	}
	if a.issuing, err = x509.ParseCertificate(a.object.IssuingCert); err != nil {
		return fmt.Errorf("stored issuing certificate: %w", err)
	}
	if err := a.root.CheckSignatureFrom(a.root); err != nil {
		return fmt.Errorf("stored root certificate: %w", err)
	}
	if err := a.issuing.CheckSignatureFrom(a.root); err != nil {
		return fmt.Errorf("stored issuing certificate: %w", err)
	}
	if a.issuingKey, err = openKey(ctx, keys, a.object.IssuingKey, a.issuing.PublicKey); err != nil {
		return err
	}
	if a.form, err = newForm(a.issuing, a.issuingKey); err != nil {
		return err
	}
	public, err := x509.ParsePKIXPublicKey(a.object.JWTPublic)
	if err != nil {
		return fmt.Errorf("stored JWT key: %w", err)
	}
	if a.jwtKey, err = openKey(ctx, keys, a.object.JWTKey, public); err != nil {
		return err
	}
	a.ownKeys = map[[32]byte]bool{
		spkiHash(a.root.RawSubjectPublicKeyInfo):    true,
		spkiHash(a.issuing.RawSubjectPublicKeyInfo): true,
		spkiHash(a.object.JWTPublic):                true,
	}
	return nil
}

// openKey opens a key and checks that it is the one that was certified.
func openKey(ctx context.Context, keys custody.Provider, name string, certified crypto.PublicKey) (crypto.Signer, error) {
	signer, err := keys.Open(ctx, name)
	if err != nil {
		return nil, err
	}
	public, ok := signer.Public().(*ecdsa.PublicKey)
	if !ok || !public.Equal(certified) {
		return nil, fmt.Errorf("key %s in custody is not the one in the authority's certificate: restore store and custody from one backup", name)
	}
	return signer, nil
}

// TrustDomain is the authority's.
func (a *Authority) TrustDomain() spiffeid.TrustDomain { return a.td }

// Name is the authority's name.
func (a *Authority) Name() string { return DefaultName }

// Chain returns the issuing CA's certificate and the root's, parsed, shared.
func (a *Authority) Chain() (issuing, root *x509.Certificate) { return a.issuing, a.root }

func (a *Authority) objectKey() string { return a.keyOf(DefaultName) }

func (a *Authority) crlKey() string { return a.keyOf(DefaultName + "/crl") }

func (a *Authority) revocationKey(id string) string {
	return a.keyOf(DefaultName + "/revocation/" + id)
}

// keyOf names an object below one prefix, so that one watch sees each
// transaction (CRL and revocation) whole.
func (a *Authority) keyOf(name string) string {
	return store.Key{TrustDomain: a.td.Name(), Namespace: store.System, Kind: "authority", Name: name}.String()
}
