// Package renewal answers "when is which certificate due, and who asks for it":
// a scheduler with the API of cert-manager.io/v1 Certificate. It makes the
// key, asks an Issuer, keeps key and certificate in a Store, writes the
// status, and does it again in time. What signs is behind Issuer (an ACME
// client, a CA, Legation); what keeps is behind Store (Memory, a folder, a
// Kubernetes API server). Serving the certificate is left to its user, who is
// told by Config.Updated; sdk/certfile reads what sdk/renewal/folder writes.
//
// # When
//
// See RenewalTime. The moment is chosen once per certificate, within a
// window before it that Config.Jitter bounds, where the fewest others are
// planned; status.renewalTime says it. Timers are compared with the wall
// clock at least once a minute, so that a clock that steps or a machine that
// slept is noticed. What became due in the meantime and still has time is
// spread too (Config.StormRate).
//
// # Who, how many, in what order
//
// At most Config.MaxConcurrent issuances run at once. Issuers take turns; of
// one issuer's certificates the one that ends first is next. Where there are
// several issuers, none has all the places.
//
// # What survives
//
// Everything is in the Store. Before an Issuer is asked, the key and the
// request are stored; after an interruption the same request is made again,
// an Issuer that is a Finder being asked first what became of it. The request
// goes when it is answered, and with its Certificate. Run drains
// when its context ends: issuances get Config.Drain to finish and are then
// cancelled, to be taken up by the next Run. With sdk/drain, that is what
// SIGTERM does, and SIGHUP reads the Filter again:
//
//	drain.Run(ctx, drain.Config{Reload: []func() error{scheduler.Reload}},
//		drain.Background("renewals", scheduler.Run))
//
// # Differences from cert-manager
//
// A certificate that lives longer than 72 hours is due when 72 hours are
// left, even if its renewBefore says later. A retry comes early enough that
// several fit in before the certificate ends; and a failure that the Issuer
// calls permanent waits for the longest backoff. keystores, literalSubject,
// otherNames, nameConstraints and renewal.windows are refused. One Scheduler
// works on a Store; of two Certificates with the same Secret only the first
// is issued.
//
// # Metrics
//
//	legation_certificate_expiry_timestamp_seconds  gauge, by namespace, name, issuer: notAfter
//	legation_certificate_renewal_timestamp_seconds     gauge, likewise: when it is next renewed
//	legation_certificate_ready                         gauge, likewise: 1 when Ready
//	legation_certificate_issuances_total               counter, by issuer and result (issued, temporary, permanent, cancelled)
//	legation_certificate_issue_seconds                 histogram, by issuer: from asking to the answer
//	legation_renewal_queue_depth                       gauge: due and waiting for a place
//	legation_renewal_running                           gauge: being issued
//	legation_renewal_sweep_timestamp_seconds           gauge: when everything was last looked at
package renewal

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// Config is what New needs; only Store and Issuers have no default.
type Config struct {
	// Store keeps certificates and Secrets.
	Store Store
	// Issuers finds who signs. A certificate whose issuer is missing is looked
	// at again at the next sweep.
	Issuers Issuers
	// Updated, when set, is told of every Secret that holds a key and a
	// certificate that belong together: once after the start and then
	// whenever it is another one. Its arguments are its own. It is called by
	// one goroutine at a time per certificate and should be quick.
	Updated func(*Certificate, *Secret)
	// Filters, when set, says which certificates to take care of; Run calls it
	// at its start, Reload again. Nil: all.
	Filters func() (Filter, error)

	// MaxConcurrent is how many issuances run at once; 0 is 5.
	MaxConcurrent int
	// PerIssuer is how many of them may be one issuer's; 0 is MaxConcurrent,
	// or one less where the certificates name several issuers.
	PerIssuer int
	// Sweep is how often everything is looked at, whether or not the Store
	// reported a change; 0 is 10 minutes.
	Sweep time.Duration
	// Jitter is how much of the time between issuance and renewal may be cut
	// off to spread renewals, 0 to 0.5; 0 is 0.1, negative is none.
	Jitter float64
	// StormRate is how many renewals that are overdue, though not urgent,
	// start per minute; 0 is 60. What is missing, expired, wrong or asked for
	// by hand does not wait.
	StormRate int
	// Backoff of failed issuances.
	Backoff Backoff
	// MinInterval is the least time between two issuances of one certificate
	// whose spec did not change, however short the issuer makes it; 0 is a
	// minute.
	MinInterval time.Duration
	// IssueTimeout bounds one call of an Issuer; 0 is 10 minutes.
	IssueTimeout time.Duration
	// Drain is how long issuances may go on after Run's context ended; 0 is 15
	// seconds, negative is not at all. Run needs up to 10 seconds more, for
	// issuers to notice.
	Drain time.Duration
	// PrivateKey is for certificates that do not say; its zero fields are
	// cert-manager's defaults: RSA 2048, PKCS1, a new key for each certificate.
	PrivateKey CertificatePrivateKey

	// Logger gets what people act on; nil is slog.Default().
	Logger *slog.Logger
	// Registerer gets the metrics; nil keeps them unregistered.
	Registerer prometheus.Registerer
	// Now reads the wall clock; nil is time.Now.
	Now func() time.Time
}

// A Scheduler renews certificates. Make one with New.
type Scheduler struct {
	cfg     Config
	log     *slog.Logger
	metrics *metrics
	planner *planner
	filter  atomic.Pointer[matcher]
	runs    atomic.Bool
	once    atomic.Bool // nothing is put off
	wake    chan struct{}

	mu      sync.Mutex   // guards what follows
	pending map[Key]bool // to be examined
	all     bool         // examine everything
	claims  map[Key]Key  // Secret to the Certificate that has it
}

// New checks a configuration. It starts nothing.
func New(cfg Config) (*Scheduler, error) {
	if cfg.Store == nil || cfg.Issuers == nil {
		return nil, errors.New("renewal: Config.Store and Config.Issuers are needed")
	}
	if cfg.Jitter > 0.5 {
		return nil, fmt.Errorf("renewal: Config.Jitter %g is over 0.5: certificates would be renewed far too early", cfg.Jitter)
	}
	cfg.MaxConcurrent = max(0, cfg.MaxConcurrent)
	cfg.MaxConcurrent = cmp.Or(cfg.MaxConcurrent, 5)
	cfg.Sweep = cmp.Or(max(0, cfg.Sweep), 10*time.Minute)
	cfg.Jitter = max(0, cmp.Or(cfg.Jitter, 0.1))
	cfg.StormRate = cmp.Or(max(0, cfg.StormRate), 60)
	cfg.Backoff = cfg.Backoff.withDefaults()
	cfg.MinInterval = cmp.Or(max(0, cfg.MinInterval), time.Minute)
	cfg.IssueTimeout = cmp.Or(max(0, cfg.IssueTimeout), 10*time.Minute)
	cfg.Drain = max(0, cmp.Or(cfg.Drain, 15*time.Second))
	cfg.PrivateKey.Algorithm = cmp.Or(cfg.PrivateKey.Algorithm, RSA)
	if cfg.Logger == nil {
		cfg.Logger = slog.Default()
	}
	if cfg.Now == nil {
		cfg.Now = func() time.Time { return time.Now().Round(0) }
	}
	counted, err := newMetrics(cfg.Registerer)
	if err != nil {
		return nil, err
	}
	s := &Scheduler{
		cfg: cfg, log: cfg.Logger, metrics: counted, planner: newPlanner(),
		wake: make(chan struct{}, 1), pending: make(map[Key]bool), claims: make(map[Key]Key),
	}
	s.filter.Store(&matcher{})
	return s, nil
}

// Run takes care of the certificates until ctx ends, then drains and returns
// nil. It fails at once when the Filter cannot be read or another Scheduler
// works on the Store; a Store that is away later is tried again.
func (s *Scheduler) Run(ctx context.Context) error { return s.run(ctx, false) }

// RunOnce issues what is due now and returns when nothing is left to do now.
// Its error lists every certificate that is not Ready, and why.
func (s *Scheduler) RunOnce(ctx context.Context) error { return s.run(ctx, true) }

// Renew asks for a certificate's renewal now, like cmctl renew.
func (s *Scheduler) Renew(ctx context.Context, k Key) error {
	if err := trigger(ctx, s.cfg.Store, k, s.cfg.Now()); err != nil {
		return err
	}
	s.look(k)
	return nil
}

// Reload reads the Filter again and looks at everything, while issuances go
// on. A Filter that cannot be read leaves the last one in force.
func (s *Scheduler) Reload() error {
	if s.cfg.Filters != nil {
		f, err := s.cfg.Filters()
		if err != nil {
			return fmt.Errorf("the last good filter stays: %w", err)
		}
		m, err := f.compile()
		if err != nil {
			return fmt.Errorf("the last good filter stays: %w", err)
		}
		s.filter.Store(m)
	}
	s.mu.Lock()
	s.all = true
	s.mu.Unlock()
	s.nudge()
	return nil
}

// look has a certificate examined.
func (s *Scheduler) look(k Key) {
	s.mu.Lock()
	s.pending[k] = true
	s.mu.Unlock()
	s.nudge()
}

func (s *Scheduler) nudge() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// claim gives a Secret to a certificate; it returns who has it already.
func (s *Scheduler) claim(secret, certificate Key) (Key, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	owner, taken := s.claims[secret]
	if taken && owner != certificate {
		return owner, false
	}
	s.claims[secret] = certificate
	return certificate, true
}

// release takes back a Secret, if it is the certificate's.
func (s *Scheduler) release(secret, certificate Key) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.claims[secret] == certificate {
		delete(s.claims, secret)
	}
}
