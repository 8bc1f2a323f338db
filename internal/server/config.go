// Package server assembles the control plane.
package server

import (
	"net"
	"path/filepath"
	"regexp"
	"strconv"
	"time"

	"github.com/legation-io/legation/internal/configfile"
	"github.com/legation-io/legation/internal/telemetry"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// Config is the control plane's one configuration file. Flags override it.
type Config struct {
	// TrustDomain is the name of the trust domain, e.g. "example.org". It is
	// the one choice that cannot be changed later.
	TrustDomain string `yaml:"trustDomain"`
	// Cluster is what JWT-SVIDs say in their claim "cluster"; default the
	// trust domain.
	Cluster string `yaml:"cluster"`
	// DataDir holds the embedded store; 0700, made when absent.
	DataDir string `yaml:"dataDir"`
	// Listen is where agents and operators connect by mTLS.
	Listen string `yaml:"listen"`
	// Metrics is where Prometheus metrics and health are served; empty is off.
	Metrics string `yaml:"metrics"`
	// AdminSocket is a 0600 Unix socket; its owner is admin.
	AdminSocket string `yaml:"adminSocket"`
	// KEKFile is the key-encryption key that seals the authority's keys;
	// default <dataDir>/kek, made at first start.
	KEKFile string `yaml:"kekFile"`
	// DNSNames are further DNS SANs of the server's certificate.
	DNSNames []string `yaml:"dnsNames"`
	// Log says what is logged and how.
	Log telemetry.LogConfig `yaml:"log"`
	// Lifetimes of what is issued; zero is the default.
	Lifetimes Lifetimes `yaml:"lifetimes"`
	// Roles bind operators' SPIFFE IDs to what they may do.
	Roles []RoleBinding `yaml:"roles"`
	// Limits per node, namespace and caller.
	Limits Limits `yaml:"limits"`
}

// Lifetimes of what the authority issues.
type Lifetimes struct {
	// X509SVID where the entry says nothing; 24h.
	X509SVID configfile.Duration `yaml:"x509SVID"`
	// MaxX509SVID bounds what entries may ask for; 72h.
	MaxX509SVID configfile.Duration `yaml:"maxX509SVID"`
	// JWTSVID where the entry says nothing; 5m.
	JWTSVID configfile.Duration `yaml:"jwtSVID"`
	// Root of a new authority; 10 years (87600h).
	Root configfile.Duration `yaml:"root"`
	// Issuing CA of a new authority; 1 year (8760h).
	Issuing configfile.Duration `yaml:"issuing"`
}

// RoleBinding gives operators a role.
type RoleBinding struct {
	// Role is viewer, operator, security or admin; each includes the former.
	Role string `yaml:"role"`
	// Namespace the role is for; "*" is all.
	Namespace string `yaml:"namespace"`
	// Subjects are SPIFFE IDs of this trust domain.
	Subjects []string `yaml:"subjects"`
}

// Limits bound what one caller can cost.
type Limits struct {
	// CSRsPerSecond per node.
	CSRsPerSecond int `yaml:"csrsPerSecond"`
	// AttestationsPerMinute per address.
	AttestationsPerMinute int `yaml:"attestationsPerMinute"`
	// StreamsPerNode at one time.
	StreamsPerNode int `yaml:"streamsPerNode"`
	// EntriesPerNamespace that can be declared.
	EntriesPerNamespace int `yaml:"entriesPerNamespace"`
	// EntriesPerNode that can be parented to one node.
	EntriesPerNode int `yaml:"entriesPerNode"`
}

// DefaultConfig is what an empty file means.
func DefaultConfig() Config {
	return Config{
		DataDir:     "/var/lib/legation",
		Listen:      "0.0.0.0:15012",
		Metrics:     "127.0.0.1:15014",
		AdminSocket: "/run/legation/admin.sock",
		Log:         telemetry.LogConfig{Level: "info", Format: "text"},
		Lifetimes: Lifetimes{
			X509SVID:    configfile.Duration(24 * time.Hour),
			MaxX509SVID: configfile.Duration(72 * time.Hour),
			JWTSVID:     configfile.Duration(5 * time.Minute),
			Root:        configfile.Duration(10 * 365 * 24 * time.Hour),
			Issuing:     configfile.Duration(365 * 24 * time.Hour),
		},
		Limits: Limits{CSRsPerSecond: 2000, AttestationsPerMinute: 60, StreamsPerNode: 16, EntriesPerNamespace: 100_000, EntriesPerNode: 10_000},
	}
}

// LoadConfig reads a file over the defaults and validates.
func LoadConfig(path string) (Config, error) {
	c := DefaultConfig()
	if err := configfile.Load(path, &c); err != nil {
		return c, err
	}
	return c, nil
}

var clusterName = regexp.MustCompile(`^[A-Za-z0-9]([A-Za-z0-9._-]{0,251}[A-Za-z0-9])?$`)

// Validate reports all mistakes at once, by the key that was typed.
func (c *Config) Validate() error {
	var p configfile.Problems
	td, err := spiffeid.TrustDomainFromString(c.TrustDomain)
	switch {
	case c.TrustDomain == "":
		p.Add("trustDomain", "missing; choose a name that is yours, e.g. example.org (it cannot be changed later)")
	case err != nil || td.Name() != c.TrustDomain:
		p.Add("trustDomain", "%q is not a trust domain name: lower-case letters, digits, '.', '-', '_', without spiffe://", c.TrustDomain)
	}
	if c.Cluster != "" && !clusterName.MatchString(c.Cluster) {
		p.Add("cluster", "%q is no cluster name: 1 to 253 letters, digits, '.', '-', '_'", c.Cluster)
	}
	if c.DataDir == "" {
		p.Add("dataDir", "missing")
	}
	for key, addr := range map[string]string{"listen": c.Listen, "metrics": c.Metrics} {
		if addr == "" && key == "metrics" {
			continue
		}
		if _, _, err := net.SplitHostPort(addr); err != nil {
			p.Add(key, "%q is not HOST:PORT", addr)
		}
	}
	if !filepath.IsAbs(c.AdminSocket) {
		p.Add("adminSocket", "%q is not an absolute path", c.AdminSocket)
	} else if len(c.AdminSocket) > 100 {
		p.Add("adminSocket", "longer than a Unix socket's path may be (100)")
	}
	c.Log.Validate("log", &p)
	l := c.Lifetimes
	for key, d := range map[string]configfile.Duration{"lifetimes.x509SVID": l.X509SVID, "lifetimes.maxX509SVID": l.MaxX509SVID, "lifetimes.jwtSVID": l.JWTSVID, "lifetimes.root": l.Root, "lifetimes.issuing": l.Issuing} {
		if d <= 0 {
			p.Add(key, "must be more than zero")
		}
	}
	if l.X509SVID > l.MaxX509SVID {
		p.Add("lifetimes.x509SVID", "is longer than lifetimes.maxX509SVID")
	}
	if l.MaxX509SVID > l.Issuing {
		p.Add("lifetimes.maxX509SVID", "is longer than lifetimes.issuing, and no certificate outlives its issuer")
	}
	if l.Issuing > l.Root {
		p.Add("lifetimes.issuing", "is longer than lifetimes.root")
	}
	if l.JWTSVID > configfile.Duration(24*time.Hour) {
		p.Add("lifetimes.jwtSVID", "is longer than 24h; a JWT-SVID cannot be revoked")
	}
	for i, r := range c.Roles {
		key := "roles[" + strconv.Itoa(i) + "]"
		switch r.Role {
		case "viewer", "operator", "security", "admin":
		default:
			p.Add(key+".role", "%q; write viewer, operator, security or admin", r.Role)
		}
		if r.Namespace == "" {
			p.Add(key+".namespace", "missing; write a namespace, or \"*\"")
		}
		if len(r.Subjects) == 0 {
			p.Add(key+".subjects", "missing; name SPIFFE IDs")
		}
		for j, s := range r.Subjects {
			id, err := spiffeid.FromString(s)
			if err != nil {
				p.Add(key+".subjects["+strconv.Itoa(j)+"]", "%q: %v", s, err)
			} else if !id.MemberOf(td) {
				p.Add(key+".subjects["+strconv.Itoa(j)+"]", "%q is not of trust domain %s", s, c.TrustDomain)
			}
		}
	}
	for key, n := range map[string]int{"limits.csrsPerSecond": c.Limits.CSRsPerSecond, "limits.attestationsPerMinute": c.Limits.AttestationsPerMinute, "limits.streamsPerNode": c.Limits.StreamsPerNode, "limits.entriesPerNamespace": c.Limits.EntriesPerNamespace, "limits.entriesPerNode": c.Limits.EntriesPerNode} {
		if n <= 0 {
			p.Add(key, "must be more than zero")
		}
	}
	if c.KEKFile == "" {
		c.KEKFile = filepath.Join(c.DataDir, "kek")
	}
	return p.Err()
}

// reloadable are the keys that SIGHUP applies; every other needs a restart.
var reloadable = map[string]bool{"log": true}

// NeedsRestart lists the keys that differ and cannot be applied live. Of log
// only the level can.
func NeedsRestart(old, next Config) []string {
	keys := configfile.Differences(old, next, reloadable)
	if old.Log.Format != next.Log.Format {
		keys = append(keys, "log.format")
	}
	return keys
}
