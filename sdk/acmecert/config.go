package acmecert

import (
	"cmp"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/caddyserver/certmagic"
	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/net/idna"
)

// Directories of Let's Encrypt. Certificates of staging are trusted by
// nobody and hardly limited: begin with it.
const (
	LetsEncrypt        = certmagic.LetsEncryptProductionCA
	LetsEncryptStaging = certmagic.LetsEncryptStagingCA
)

// KeyType is which kind of key a certificate gets.
type KeyType string

// Key types. Every certificate gets a new key.
const (
	P256    KeyType = "p256"
	RSA2048 KeyType = "rsa2048"
)

// Challenge is how control of a name is proved.
type Challenge string

// Challenges (RFC 8555 8.3 and 8.4, RFC 8737).
const (
	HTTP01    Challenge = "http-01"     // Manager.HTTPHandler must be reachable at port 80
	TLSALPN01 Challenge = "tls-alpn-01" // Manager.TLSConfig must be reachable at port 443
	DNS01     Challenge = "dns-01"      // Config.DNS must be set; the only one for wildcards
)

// EAB binds the ACME account to one that the CA knows already (RFC 8555
// 7.3.4); the CA gives both values.
type EAB struct {
	KeyID string
	// HMAC is the MAC key, base64url.
	HMAC string
}

// DNS says how TXT records for DNS-01 are made.
type DNS struct {
	// Provider makes and removes records: any libdns provider
	// (github.com/libdns) fits. Required.
	Provider certmagic.DNSProvider
	// Resolvers are asked instead of those of this machine, as "address:port".
	Resolvers []string
	// PropagationTimeout bounds the wait until the record is seen; 0 means two
	// minutes, negative not to look.
	PropagationTimeout time.Duration
	// OverrideDomain is where _acme-challenge is delegated to by CNAME.
	OverrideDomain string
}

// Config says which certificates are kept and where from.
type Config struct {
	// Domains get one certificate each; "*.example.org" only by DNS-01. The
	// first is shown to clients that name no server. Required.
	Domains []string
	// Email is told to the CA for the account; may be empty.
	Email string
	// TermsAgreed says that the CA's terms of service are agreed to. A CA that
	// has terms is not asked without.
	TermsAgreed bool
	// Directory is the CA, https only; empty means LetsEncrypt.
	Directory string
	// RootCAs verify the directory's own TLS certificate; nil means those of
	// the machine. For private CAs.
	RootCAs *x509.CertPool
	// Storage keeps account, keys and certificates; replicas that share it
	// share certificates and answer each other's challenges. Required: a
	// Folder, an objectstore.Storage, a Memory, or any of certmagic's.
	Storage Storage
	// EAB is set where the CA asks for external account binding.
	EAB *EAB
	// KeyType is P256 when empty.
	KeyType KeyType
	// Challenges that may be used; empty means HTTP-01 and TLS-ALPN-01, or
	// DNS-01 when DNS is set.
	Challenges []Challenge
	// DNS is needed for DNS-01.
	DNS *DNS
	// UserAgent is put before that of the ACME library.
	UserAgent string
	// HTTPTimeout bounds each request to the CA; 0 means 30 s.
	HTTPTimeout time.Duration
	// OrderTimeout bounds one order with all its waiting; 0 means 5 minutes.
	OrderTimeout time.Duration
	// RenewAt is the share of a certificate's life after which it is renewed
	// when the CA does not say (ARI); 0 means 2/3. Above 0 and below 1.
	RenewAt float64
	// ReloadEvery is how often Storage is looked at for a certificate that
	// another replica renewed; 0 means 10 minutes.
	ReloadEvery time.Duration
	// RetryAfter is the wait after a first failure, doubled up to six hours;
	// 0 means one minute. A Retry-After of the CA counts when it is longer.
	RetryAfter time.Duration
	// Concurrency is how many orders run at once; 0 means 5.
	Concurrency int
	// NoARI does not ask the CA when to renew (RFC 9773).
	NoARI bool
	// NoStaples does not fetch OCSP responses (RFC 6960) for certificates that
	// name a responder.
	NoStaples bool
	// AllowOCSP says which responder addresses besides public ones (sdk/egress)
	// may be connected to: a responder's URL comes from outside, so that
	// loopback, private and link-local addresses are refused otherwise.
	AllowOCSP []netip.Prefix
	// Logger is slog.Default() when nil.
	Logger *slog.Logger
	// Registerer takes the metrics; may be nil.
	Registerer prometheus.Registerer
	// Now is time.Now when nil.
	Now func() time.Time
}

var label = regexp.MustCompile(`^[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?$`)

func (c *Config) defaults() {
	c.Directory = cmp.Or(c.Directory, LetsEncrypt)
	c.KeyType = cmp.Or(c.KeyType, P256)
	if len(c.Challenges) == 0 {
		c.Challenges = []Challenge{HTTP01, TLSALPN01}
		if c.DNS != nil {
			c.Challenges = []Challenge{DNS01}
		}
	}
	c.HTTPTimeout = cmp.Or(c.HTTPTimeout, 30*time.Second)
	c.OrderTimeout = cmp.Or(c.OrderTimeout, 5*time.Minute)
	c.RenewAt = cmp.Or(c.RenewAt, 2.0/3)
	c.ReloadEvery = cmp.Or(c.ReloadEvery, 10*time.Minute)
	c.RetryAfter = cmp.Or(c.RetryAfter, time.Minute)
	c.Concurrency = cmp.Or(c.Concurrency, 5)
	if c.Logger == nil {
		c.Logger = slog.Default()
	}
	if c.Now == nil {
		c.Now = time.Now
	}
}

// Validate reports every mistake at once, by the field's name.
func (c *Config) Validate() error {
	checked := *c
	checked.Domains = append([]string(nil), c.Domains...)
	checked.defaults()
	return checked.validate()
}

// validate also brings Domains into the form that is compared with.
func (c *Config) validate() error {
	var problems []error
	refuse := func(format string, args ...any) { problems = append(problems, fmt.Errorf(format, args...)) }
	if len(c.Domains) == 0 {
		refuse("Domains is empty: name at least one")
	}
	seen := map[string]bool{}
	for i, d := range c.Domains {
		name, err := domain(d)
		switch {
		case err != nil:
			refuse("Domains: %w", err)
		case seen[name]:
			refuse("Domains: %q is there twice", name)
		case strings.HasPrefix(name, "*.") && !c.allows(DNS01):
			refuse("Domains: %q: a wildcard is proved by DNS-01 alone: set DNS and Challenges (RFC 8555 8.4)", name)
		}
		seen[name] = true
		c.Domains[i] = name
	}
	if err := httpsURL(c.Directory); err != nil {
		refuse("Directory: %w", err)
	}
	if strings.ContainsAny(c.Email, "\r\n,? ") {
		refuse("Email: %q is not one address", c.Email)
	}
	if c.Storage == nil {
		refuse("Storage is not set: use acmecert.OpenFolder, an objectstore, or &acmecert.Memory{} for tests")
	}
	if c.EAB != nil {
		if _, err := base64.RawURLEncoding.DecodeString(strings.TrimRight(c.EAB.HMAC, "=")); err != nil || c.EAB.HMAC == "" || c.EAB.KeyID == "" {
			refuse("EAB needs KeyID and HMAC, the latter base64url as the CA gives it")
		}
	}
	if c.KeyType != P256 && c.KeyType != RSA2048 {
		refuse("KeyType: %q is neither %q nor %q", c.KeyType, P256, RSA2048)
	}
	for _, challenge := range c.Challenges {
		switch {
		case challenge == DNS01 && (c.DNS == nil || c.DNS.Provider == nil):
			refuse("Challenges: dns-01 needs DNS with its Provider")
		case challenge != HTTP01 && challenge != TLSALPN01 && challenge != DNS01:
			refuse("Challenges: %q is none of %q, %q and %q", challenge, HTTP01, TLSALPN01, DNS01)
		}
	}
	if c.RenewAt <= 0 || c.RenewAt >= 1 {
		refuse("RenewAt: %g is not between 0 and 1", c.RenewAt)
	}
	for name, d := range map[string]time.Duration{"HTTPTimeout": c.HTTPTimeout, "OrderTimeout": c.OrderTimeout, "ReloadEvery": c.ReloadEvery, "RetryAfter": c.RetryAfter} {
		if d < 0 {
			refuse("%s: %s is negative", name, d)
		}
	}
	if c.Concurrency < 0 {
		refuse("Concurrency: %d is negative", c.Concurrency)
	}
	if strings.ContainsAny(c.UserAgent, "\r\n") {
		refuse("UserAgent has a line break")
	}
	if len(problems) > 0 {
		return fmt.Errorf("acmecert: %w", errors.Join(problems...))
	}
	return nil
}

func (c *Config) allows(challenge Challenge) bool { return slices.Contains(c.Challenges, challenge) }

// domain brings a DNS name into the one form in which it is compared: ASCII,
// lower case, no final dot.
func domain(name string) (string, error) {
	trimmed := strings.TrimSuffix(strings.TrimSpace(name), ".")
	rest, wildcard := strings.CutPrefix(trimmed, "*.")
	ascii, err := idna.Lookup.ToASCII(rest)
	if err != nil {
		return "", fmt.Errorf("%q is not a DNS name: %w", name, err)
	}
	ascii = strings.ToLower(ascii)
	if net.ParseIP(ascii) != nil {
		return "", fmt.Errorf("%q is an address: only DNS names get certificates here", name)
	}
	if ascii == "" || len(ascii) > 253 {
		return "", fmt.Errorf("%q is not a DNS name: it has no or too many characters", name)
	}
	for l := range strings.SplitSeq(ascii, ".") {
		if !label.MatchString(l) {
			return "", fmt.Errorf("%q is not a DNS name: see %q", name, l)
		}
	}
	if wildcard {
		ascii = "*." + ascii
	}
	return ascii, nil
}

// httpsURL refuses every URL that is not https (RFC 8555 6.1).
func httpsURL(raw string) error {
	u, err := url.Parse(raw)
	if err != nil {
		return fmt.Errorf("%q is not a URL: %w", raw, err)
	}
	if u.Scheme != "https" || u.Host == "" || u.User != nil {
		return fmt.Errorf("%q is refused: ACME is spoken over https alone (RFC 8555 6.1), give a URL like https://ca.example/directory", raw)
	}
	return nil
}
