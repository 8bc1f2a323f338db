// Package certfile answers "which certificate do the files hold now": it loads
// a certificate, its key and, if wanted, a CA bundle and revocation lists from
// PEM files, and replaces all of them at once when the files change. It is an
// identity.Source for sdk/mtls and sdk/grpccreds, and has the callbacks of
// tls.Config for everybody else.
//
//	files, err := certfile.New(certfile.Config{Certificate: "tls.crt", Key: "tls.key"})
//	go files.Run(ctx)
//	config := &tls.Config{GetCertificate: files.GetCertificate}
//
// Changes are noticed by watching the folders, links included, and by reading
// again every Poll, for file systems that tell nothing. What Kubernetes does
// (swapping ..data), editors (a rename), certbot (links to an archive) and
// careless scripts (writing in place, one file after the other) all end in the
// same: when everything that is configured can be read, parses, belongs together
// and is in its time, it replaces the old at once; until then the old stays, and
// why is logged once, counted, and told by Status.
//
// Key bytes are read and decoded in locked memory (sdk/secretmem) that is wiped;
// what crypto/x509 parses from them lives on the heap, as everywhere in Go.
//
// It verifies nobody: that is sdk/chaincheck's. It does not renew: that is up to
// who writes the files.
//
// Metrics:
//
//	legation_certfile_loads_total{file,result="changed"|"refused"}
//	legation_certfile_expiry_timestamp_seconds{file}  notAfter of what is served
//	legation_certfile_watching{file}                  1; 0 while only Poll notices changes
package certfile

import (
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/legation-io/legation/sdk/identity"
)

// Config says which files, and how they are watched. Only Certificate is needed,
// or Bundle for who only verifies others.
type Config struct {
	// Certificate is a PEM file: the leaf first, then intermediates (RFC 8446
	// 4.4.2). A root at its end is left out. It may hold the key too.
	Certificate string
	// Key is a PEM file with one unencrypted private key (PKCS #8, PKCS #1 or
	// SEC 1) that belongs to the leaf. Empty: it is in Certificate.
	Key string
	// Bundle is a PEM file with the roots of the own trust domain. Empty: nobody
	// is believed.
	Bundle string
	// TrustDomain is whose roots Bundle has. Zero: that of the certificate's
	// SPIFFE ID; needed when it has none.
	TrustDomain spiffeid.TrustDomain
	// Federated are the bundle files of other trust domains.
	Federated map[spiffeid.TrustDomain]string
	// CRLs are files with revocation lists, PEM or DER.
	CRLs []string

	// MayAppear lets New succeed while the files are not (all) there or not
	// good yet: Current says *identity.NotReady until they are.
	MayAppear bool
	// Poll is how often everything is read again, whatever the watcher says;
	// zero is 30 s. While watching is not possible it is at most 5 s.
	Poll time.Duration
	// Settle is how long the files must be left alone after a change before
	// they are read; zero is 100 ms.
	Settle time.Duration
	// MaxSize of one file in bytes; zero is 1 MiB.
	MaxSize int64

	// Logger; nil is slog.Default().
	Logger *slog.Logger
	// Registerer of the metrics; may be nil.
	Registerer prometheus.Registerer
	// Now is wall time; nil is time.Now.
	Now func() time.Time
}

func (c *Config) defaults() error {
	if c.Certificate == "" && c.Bundle == "" {
		return errors.New("certfile: Config.Certificate is empty; only who verifies others and presents nothing may leave it out, and then needs Config.Bundle")
	}
	if c.Certificate == "" && c.Key != "" {
		return fmt.Errorf("certfile: Config.Key is %s, and Config.Certificate is empty", c.Key)
	}
	if c.Certificate == "" && c.TrustDomain.IsZero() {
		return fmt.Errorf("certfile: Config.TrustDomain must say whose roots %s has: there is no certificate to tell", c.Bundle)
	}
	if c.Poll < 0 || c.Settle < 0 || c.MaxSize < 0 {
		return errors.New("certfile: Config.Poll, Settle and MaxSize must not be negative")
	}
	for _, d := range []struct {
		field  *time.Duration
		normal time.Duration
	}{{&c.Poll, 30 * time.Second}, {&c.Settle, 100 * time.Millisecond}} {
		if *d.field == 0 {
			*d.field = d.normal
		}
	}
	if c.MaxSize == 0 {
		c.MaxSize = 1 << 20
	}
	if c.Logger == nil {
		c.Logger = slog.Default()
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.Key == "" {
		c.Key = c.Certificate
	}
	return nil
}

// name is the file that stands for all in logs and metrics.
func (c *Config) name() string {
	if c.Certificate == "" {
		return c.Bundle
	}
	return c.Certificate
}

// files are all that are read, each once.
func (c *Config) files() []string {
	var all []string
	seen := map[string]bool{"": true}
	add := func(path string) {
		if !seen[path] {
			seen[path] = true
			all = append(all, path)
		}
	}
	add(c.Certificate)
	add(c.Key)
	add(c.Bundle)
	for _, path := range c.Federated {
		add(path)
	}
	for _, path := range c.CRLs {
		add(path)
	}
	return all
}

// A Source serves what the files hold. It is safe for use by many goroutines.
type Source struct {
	config  Config
	metrics metrics
	memory  identity.Memory

	reload sync.Mutex // one load at a time; guards what follows
	sum    digest     // of what is served
	warned map[string]os.FileMode
	quiet  bool

	mu     sync.Mutex // guards what follows
	status Status
}

var _ identity.Source = (*Source)(nil)

// Status is how a Source stands.
type Status struct {
	// ID of the certificate that is served; zero when it has none.
	ID spiffeid.ID
	// Serial number (hexadecimal) and end of the certificate that is served.
	Serial   string
	NotAfter time.Time
	// Loaded is when it was; zero when nothing ever was.
	Loaded time.Time
	// Refused says why what the files hold now is not served; nil when it is.
	Refused error
	// RefusedSince is when that began.
	RefusedSince time.Time
	// Watching says that changes are noticed at once; WatchError says why not.
	Watching   bool
	WatchError error
}

// New reads the files. Unless Config.MayAppear is set, it fails when they are
// not good. It starts nothing: see Run.
func New(c Config) (*Source, error) {
	if err := c.defaults(); err != nil {
		return nil, err
	}
	for _, path := range c.files() {
		if !filepath.IsAbs(path) {
			// A relative path would follow a later change of directory.
			if err := c.absolute(); err != nil {
				return nil, err
			}
			break
		}
	}
	m, err := newMetrics(c.Registerer, c.name())
	if err != nil {
		return nil, err
	}
	s := &Source{config: c, metrics: m, warned: map[string]os.FileMode{}}
	s.memory.Fail(s.notReady(nil))
	s.quiet = !c.MayAppear // what is returned is not logged
	if err := s.Reload(); err != nil && !c.MayAppear {
		return nil, err
	}
	s.quiet = false
	return s, nil
}

func (c *Config) absolute() error {
	var errs []error
	abs := func(path string) string {
		if path == "" {
			return ""
		}
		full, err := filepath.Abs(path)
		errs = append(errs, err)
		return full
	}
	c.Certificate, c.Key, c.Bundle = abs(c.Certificate), abs(c.Key), abs(c.Bundle)
	federated := make(map[spiffeid.TrustDomain]string, len(c.Federated))
	for domain, path := range c.Federated {
		federated[domain] = abs(path)
	}
	c.Federated = federated
	lists := make([]string, len(c.CRLs))
	for n, path := range c.CRLs {
		lists[n] = abs(path)
	}
	c.CRLs = lists
	return errors.Join(errs...)
}

// Current implements identity.Source.
func (s *Source) Current() (*identity.Snapshot, <-chan struct{}, error) { return s.memory.Current() }

// GetCertificate is for tls.Config: the certificate of now, for every server
// name.
func (s *Source) GetCertificate(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	return s.certificate()
}

// GetClientCertificate is for tls.Config: the certificate of now, for every
// server that asks for one.
func (s *Source) GetClientCertificate(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
	return s.certificate()
}

func (s *Source) certificate() (*tls.Certificate, error) {
	snapshot, _, err := s.memory.Current()
	if err != nil {
		return nil, err
	}
	if snapshot.Certificate == nil {
		return nil, &identity.NotReady{Source: "a certificate, which certfile.Config does not name"}
	}
	return snapshot.Certificate, nil
}

// Status says what is served and what is wrong.
func (s *Source) Status() Status {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.status
}

// Reload reads the files now, e.g. on SIGHUP. The error says why what they hold
// is not used; what was there before is served on.
func (s *Source) Reload() error {
	s.reload.Lock()
	defer s.reload.Unlock()
	set, err := s.load()
	if err != nil {
		s.refuse(err)
		return err
	}
	defer set.wipe()
	if set.sum == s.sum {
		s.unchanged()
		return nil
	}
	snapshot, err := set.parse(s.config.Now())
	if err != nil {
		s.refuse(err)
		return err
	}
	s.sum = set.sum
	s.accept(snapshot)
	return nil
}

func (s *Source) notReady(err error) error {
	return &identity.NotReady{Source: "the files of " + s.config.name(), Err: err}
}

// refuse logs each reason once.
func (s *Source) refuse(err error) {
	s.mu.Lock()
	again := s.status.Refused != nil && s.status.Refused.Error() == err.Error()
	if s.status.Refused == nil {
		s.status.RefusedSince = s.config.Now()
	}
	s.status.Refused = err
	kept := s.status
	s.mu.Unlock()
	s.metrics.refused.Inc()
	if kept.Loaded.IsZero() {
		s.memory.Fail(s.notReady(err))
	}
	if again || s.quiet {
		return
	}
	if kept.Loaded.IsZero() {
		s.config.Logger.Warn("certificate files are not good yet", "file", s.config.name(), "error", err)
		return
	}
	s.config.Logger.Warn("new certificate files are refused, the old ones are served on", "file", s.config.name(), "error", err,
		"serial", kept.Serial, "not_after", kept.NotAfter)
}

// unchanged: what was refused in between is gone again.
func (s *Source) unchanged() {
	s.mu.Lock()
	back := s.status.Refused != nil
	s.status.Refused, s.status.RefusedSince = nil, time.Time{}
	s.mu.Unlock()
	if back {
		s.config.Logger.Info("certificate files are what they were", "file", s.config.name())
	}
}

func (s *Source) accept(snapshot *identity.Snapshot) {
	next := Status{ID: snapshot.ID, Loaded: s.config.Now()}
	if c := snapshot.Certificate; c != nil {
		next.Serial, next.NotAfter = c.Leaf.SerialNumber.Text(16), c.Leaf.NotAfter
		s.metrics.expiry.Set(float64(next.NotAfter.Unix()))
	}
	s.mu.Lock()
	next.Watching, next.WatchError = s.status.Watching, s.status.WatchError
	s.status = next
	s.mu.Unlock()
	s.memory.Set(snapshot)
	s.metrics.changed.Inc()
	attrs := []any{"file", s.config.name()}
	if next.Serial != "" {
		attrs = append(attrs, "serial", next.Serial, "not_after", next.NotAfter)
	}
	if !next.ID.IsZero() {
		attrs = append(attrs, "spiffe_id", next.ID.String())
	}
	s.config.Logger.Info("certificate files loaded", attrs...)
}

func (s *Source) watching(on bool, err error) {
	s.mu.Lock()
	changed := s.status.Watching != on || (s.status.WatchError == nil) != (err == nil)
	s.status.Watching, s.status.WatchError = on, err
	s.mu.Unlock()
	s.metrics.watching.Set(0)
	if on {
		s.metrics.watching.Set(1)
	}
	if changed && err != nil {
		s.config.Logger.Warn("certificate files cannot be watched, changes are noticed by reading them again", "file", s.config.name(), "every", s.slow(), "error", err)
	}
}

// slow is how often files are read that cannot be watched.
func (s *Source) slow() time.Duration { return min(s.config.Poll, 5*time.Second) }
