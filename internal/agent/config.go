// Package agent assembles everything that runs beside workloads.
package agent

import (
	"encoding/hex"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	attestnode "github.com/legation-io/legation/internal/attest/node"
	"github.com/legation-io/legation/internal/configfile"
	"github.com/legation-io/legation/internal/telemetry"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// Config is the agent's one configuration file. Flags override it.
type Config struct {
	// TrustDomain is the name of the trust domain this node joins.
	TrustDomain string `yaml:"trustDomain"`
	// Servers are the replicas of the control plane, HOST:PORT.
	Servers []string `yaml:"servers"`
	// DataDir holds the sealed cache; 0700, made when absent.
	DataDir string `yaml:"dataDir"`
	// Socket is the public Unix socket: Workload API, SDS, sessions. Every
	// caller is attested.
	Socket string `yaml:"socket"`
	// AdminSocket is a 0600 Unix socket: status and why.
	AdminSocket string `yaml:"adminSocket"`
	// RunDir holds the sessions' private sockets; default: beside Socket.
	RunDir string `yaml:"runDir"`
	// JoinTokenFile holds the join token of the first start.
	JoinTokenFile string `yaml:"joinTokenFile"`
	// BundleFile is a PEM file with the control plane's roots, or
	BundleFile string `yaml:"bundleFile"`
	// BundleHash is their hash, as "token create" prints it. One of the two
	// is needed.
	BundleHash string `yaml:"bundleHash"`
	// Metrics is where Prometheus metrics and health are served; empty is off.
	Metrics string `yaml:"metrics"`
	// SDS configures the optional TCP door for Envoys configured with a host and port.
	SDS SDSConfig `yaml:"sds"`
	// CacheSize bounds warm certificates that nobody uses now.
	CacheSize int `yaml:"cacheSize"`
	// HoldOff is how long a caller without an entry is held before it is denied.
	HoldOff configfile.Duration `yaml:"holdOff"`
	// MaxRevocationAge is how old the control plane's word on the CRL may
	// get before the agent alarms.
	MaxRevocationAge configfile.Duration `yaml:"maxRevocationAge"`
	// Envoy says which Envoy sessions run.
	Envoy EnvoyConfig `yaml:"envoy"`
	// Log says what is logged and how.
	Log telemetry.LogConfig `yaml:"log"`
}

// SDSConfig is the TCP door of SDS.
type SDSConfig struct {
	// Listen is a loopback HOST:PORT; empty is off. TLS with the identity
	// spiffe://<td>/legation/agent/<node>.
	Listen string `yaml:"listen"`
	// DNSNames are the names the door's certificate carries besides
	// localhost; they end in .localhost.
	DNSNames []string `yaml:"dnsNames"`
}

// names are the DNS names of the door, if it is open.
func (c SDSConfig) names() []string {
	if c.Listen == "" {
		return nil
	}
	names := []string{"localhost"}
	for _, n := range c.DNSNames {
		if !slices.Contains(names, n) {
			names = append(names, n)
		}
	}
	return names
}

// EnvoyConfig is for the Envoys of sessions.
type EnvoyConfig struct {
	// Concurrency is worker threads per Envoy; 0 is 2.
	Concurrency int `yaml:"concurrency"`
	// LogLevel of Envoys: warning by default.
	LogLevel string `yaml:"logLevel"`
}

// DefaultConfig is what an empty file means.
func DefaultConfig() Config {
	return Config{
		DataDir:          "/var/lib/legation-agent",
		Socket:           "/run/legation/agent.sock",
		AdminSocket:      "/run/legation/agent-admin.sock",
		Metrics:          "127.0.0.1:15020",
		CacheSize:        100,
		HoldOff:          configfile.Duration(2 * time.Second),
		MaxRevocationAge: configfile.Duration(5 * time.Minute),
		Envoy:            EnvoyConfig{Concurrency: 2, LogLevel: "warning"},
		Log:              telemetry.LogConfig{Level: "info", Format: "text"},
	}
}

// LoadConfig reads a file over the defaults.
func LoadConfig(path string) (Config, error) {
	c := DefaultConfig()
	return c, configfile.Load(path, &c)
}

// Validate reports all mistakes at once, by the key that was typed.
func (c *Config) Validate() error {
	var p configfile.Problems
	td, err := spiffeid.TrustDomainFromString(c.TrustDomain)
	switch {
	case c.TrustDomain == "":
		p.Add("trustDomain", "missing; write the control plane's trust domain")
	case err != nil || td.Name() != c.TrustDomain:
		p.Add("trustDomain", "%q is not a trust domain name: lower-case letters, digits, '.', '-', '_', without spiffe://", c.TrustDomain)
	}
	if len(c.Servers) == 0 {
		p.Add("servers", "missing; write at least one HOST:PORT of a control plane")
	}
	for i, s := range c.Servers {
		if _, _, err := net.SplitHostPort(s); err != nil {
			p.Add("servers["+strconv.Itoa(i)+"]", "%q is not HOST:PORT", s)
		}
	}
	for key, path := range map[string]string{"dataDir": c.DataDir, "socket": c.Socket, "adminSocket": c.AdminSocket} {
		if !filepath.IsAbs(path) {
			p.Add(key, "%q is not an absolute path", path)
		}
	}
	for key, path := range map[string]string{"socket": c.Socket, "adminSocket": c.AdminSocket} {
		if len(path) > 100 {
			p.Add(key, "longer than a Unix socket's path may be (100)")
		}
	}
	if c.Socket == c.AdminSocket {
		p.Add("adminSocket", "is the same as socket")
	}
	switch {
	case c.BundleFile == "" && c.BundleHash == "":
		p.Add("bundleHash", "missing, and bundleFile too; without one the agent cannot know the true control plane. \"legation token create\" prints the hash")
	case c.BundleHash != "":
		raw, ok := strings.CutPrefix(c.BundleHash, "sha256:")
		if b, err := hex.DecodeString(raw); !ok || err != nil || len(b) != 32 {
			p.Add("bundleHash", "%q is not sha256:<64 hex digits>", c.BundleHash)
		}
	}
	if c.BundleFile != "" {
		if _, err := os.Stat(c.BundleFile); err != nil {
			p.Add("bundleFile", "%v", err)
		}
	}
	if c.Metrics != "" {
		if _, _, err := net.SplitHostPort(c.Metrics); err != nil {
			p.Add("metrics", "%q is not HOST:PORT", c.Metrics)
		}
	}
	if c.SDS.Listen != "" {
		host, _, err := net.SplitHostPort(c.SDS.Listen)
		ip := net.ParseIP(host)
		if err != nil || host != "localhost" && (ip == nil || !ip.IsLoopback()) {
			p.Add("sds.listen", "%q is not a loopback HOST:PORT; the kernel can vouch for local callers only", c.SDS.Listen)
		}
	}
	if err := attestnode.CheckLocalNames(c.SDS.DNSNames); err != nil {
		p.Add("sds.dnsNames", "%v", err)
	}
	if c.CacheSize < 1 {
		p.Add("cacheSize", "must be at least 1")
	}
	if c.HoldOff < 0 {
		p.Add("holdOff", "must not be negative")
	}
	if c.MaxRevocationAge <= 0 {
		p.Add("maxRevocationAge", "must be more than zero")
	}
	if c.Envoy.Concurrency < 1 || c.Envoy.Concurrency > 256 {
		p.Add("envoy.concurrency", "must be 1 to 256")
	}
	switch c.Envoy.LogLevel {
	case "trace", "debug", "info", "warning", "error", "critical", "off":
	default:
		p.Add("envoy.logLevel", "%q; write trace, debug, info, warning, error, critical or off", c.Envoy.LogLevel)
	}
	c.Log.Validate("log", &p)
	if c.RunDir == "" {
		c.RunDir = filepath.Join(filepath.Dir(c.Socket), "sessions")
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
