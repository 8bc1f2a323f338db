package agent

import (
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	nodev1 "github.com/legation-io/legation/api/node/v1"
	"github.com/legation-io/legation/internal/agent/run"
	"github.com/legation-io/legation/internal/commandline"
	"github.com/legation-io/legation/internal/fault"
	"github.com/legation-io/legation/internal/telemetry"
	"github.com/legation-io/legation/internal/version"
	"github.com/legation-io/legation/sdk/secretmem"
	"github.com/spf13/cobra"
)

// Main runs the command line and returns the exit code, which for "run" is
// the program's own. unwatch stops ctx from ending by signals: "run" forwards
// them instead.
func Main(ctx context.Context, unwatch func()) int {
	code := 0
	err := Command(&code, unwatch).ExecuteContext(ctx)
	if said := commandline.Report(os.Stderr, "legation-agent", err); code == 0 {
		return said
	}
	return code
}

// Command is the whole command tree; "run" stores its program's exit code.
func Command(code *int, unwatch func()) *cobra.Command {
	root := &cobra.Command{
		Use:   "legation-agent",
		Short: "Identity and mutual TLS beside workloads",
		Long: `legation-agent runs on every node. "serve" is the agent itself: it attests the
node, attests local programs, makes keys, has them signed and serves them on a
Unix socket. "run" starts a program with its own Envoy in the path.`,
		Version: version.Version,
	}
	root.AddCommand(serveCommand(), runCommand(code, unwatch), commandline.Version())
	commandline.Strict(root)
	return root
}

func serveCommand() *cobra.Command {
	var path string
	flags := DefaultConfig()
	var servers []string
	c := &cobra.Command{
		Use: "serve", Short: "Run the agent of this node", Args: cobra.NoArgs,
		Long: `Serve runs the agent. It always needs the control plane's bundle or its hash,
and at the first start a join token; later starts use the sealed identity in
the data directory. A new token takes effect at a start. Flags override the
configuration file.`,
		Example: "  legation-agent serve --trust-domain example.org --server cp.example.org:15012 \\\n    --join-token-file /etc/legation/token --bundle-hash sha256:946f…",
	}
	f := c.Flags()
	f.StringVar(&path, "config", "", "configuration file (YAML)")
	f.StringVar(&flags.TrustDomain, "trust-domain", "", "trust domain this node joins")
	f.StringSliceVar(&servers, "server", nil, "replica of the control plane, HOST:PORT; may be given again")
	f.StringVar(&flags.DataDir, "data-dir", flags.DataDir, "where the sealed cache lives")
	f.StringVar(&flags.Socket, "socket", flags.Socket, "public Unix socket: Workload API, SDS, sessions")
	f.StringVar(&flags.AdminSocket, "admin-socket", flags.AdminSocket, "Unix socket for this machine's owner (0600)")
	f.StringVar(&flags.RunDir, "run-dir", "", "where sessions' private sockets are made (default: beside --socket)")
	f.StringVar(&flags.JoinTokenFile, "join-token-file", "", "file with the join token of the first start")
	f.StringVar(&flags.BundleFile, "bundle-file", "", "PEM file with the control plane's roots")
	f.StringVar(&flags.BundleHash, "bundle-hash", "", "hash of the roots, as \"legation token create\" prints it")
	f.StringVar(&flags.Metrics, "metrics", flags.Metrics, "address for metrics and health; empty is off")
	f.StringVar(&flags.SDS.Listen, "sds-listen", "", "loopback address for SDS over TCP with TLS; empty is off")
	f.IntVar(&flags.CacheSize, "cache-size", flags.CacheSize, "warm certificates kept that nobody uses now")
	f.StringVar(&flags.Log.Level, "log-level", flags.Log.Level, "debug, info, warn or error")
	f.StringVar(&flags.Log.Format, "log-format", flags.Log.Format, "text or json")
	load := func() (Config, error) {
		cfg, err := LoadConfig(path)
		if err != nil {
			return cfg, err
		}
		for name, set := range map[string]func(){
			"trust-domain": func() { cfg.TrustDomain = flags.TrustDomain }, "server": func() { cfg.Servers = servers }, "data-dir": func() { cfg.DataDir = flags.DataDir },
			"socket": func() { cfg.Socket = flags.Socket }, "admin-socket": func() { cfg.AdminSocket = flags.AdminSocket }, "run-dir": func() { cfg.RunDir = flags.RunDir },
			"join-token-file": func() { cfg.JoinTokenFile = flags.JoinTokenFile }, "bundle-file": func() { cfg.BundleFile = flags.BundleFile }, "bundle-hash": func() { cfg.BundleHash = flags.BundleHash },
			"metrics": func() { cfg.Metrics = flags.Metrics }, "sds-listen": func() { cfg.SDS.Listen = flags.SDS.Listen }, "cache-size": func() { cfg.CacheSize = flags.CacheSize },
			"log-level": func() { cfg.Log.Level = flags.Log.Level }, "log-format": func() { cfg.Log.Format = flags.Log.Format },
		} {
			if c.Flags().Changed(name) {
				set()
			}
		}
		for _, p := range []*string{&cfg.DataDir, &cfg.Socket, &cfg.AdminSocket, &cfg.RunDir} {
			if *p != "" {
				if *p, err = filepath.Abs(*p); err != nil {
					return cfg, err
				}
			}
		}
		return cfg, cfg.Validate()
	}
	c.RunE = func(cmd *cobra.Command, _ []string) error {
		cfg, err := load()
		if err != nil {
			return err
		}
		if err := secretmem.Harden(); err != nil {
			fmt.Fprintln(os.Stderr, "legation-agent: the process could not be hardened:", err)
		}
		log := telemetry.NewLogger(os.Stderr, cfg.Log)
		ctx, cancel := context.WithCancel(cmd.Context())
		wait := telemetry.OnHangup(ctx, func() {
			next, err := load()
			if err != nil {
				log.Error("the new configuration is refused; the old one stays", "error", err)
				return
			}
			log.SetLevel(next.Log.Level)
			if keys := NeedsRestart(cfg, next); len(keys) > 0 {
				log.Warn("configuration read again; these need a restart: " + strings.Join(keys, ", "))
				return
			}
			log.Info("configuration read again")
		})
		defer func() { cancel(); wait() }()
		return Run(ctx, cfg, log.Logger)
	}
	return c
}

func runCommand(code *int, unwatch func()) *cobra.Command {
	o := run.Options{}
	var capture bool
	var inbound, outbound []string
	var udp []uint
	var level string
	c := &cobra.Command{
		Use:   "run [flags] -- PROGRAM [ARGS...]",
		Short: "Start a program under attestation, with its own Envoy in the path",
		Long: `Run starts PROGRAM in a session of this node's agent: the program is attested
before its first instruction, gets an identity, and its traffic goes through
an Envoy of its own, which requires and verifies mutual TLS. The program
starts once the Envoy holds its certificate. Signals are forwarded (at a
terminal the keys' own signals reach the program directly); the exit code is
the program's. As root, --user runs it as somebody else: a program without
root's capabilities can neither take its proxy's key nor leave the capture.

With explicit ports (no root needed) the program connects to local ports, told
by --outbound and by LEGATION_OUTBOUND_<SERVICE> in its environment, and is
reached through --inbound. With --capture (root, in a network namespace) the
program notices nothing: nftables redirects its TCP connections, IPv4 and
IPv6, and what nothing names is refused. Without any of them the program has
its identity, and an Envoy that is in nobody's path.`,
		Example: "  legation-agent run --inbound 0.0.0.0:15443=127.0.0.1:8080 --outbound featurestore:8080=127.0.0.1:9001 -- ./server\n" +
			"  ip netns exec web legation-agent run --capture --inbound 8080 -- python3 server.py",
		Args: cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			o.Mode = nodev1.Mode_MODE_EXPLICIT
			if capture {
				o.Mode = nodev1.Mode_MODE_CAPTURE
			}
			var err error
			if o.Inbound, err = parseInbound(inbound, capture); err != nil {
				return err
			}
			if o.Outbound, err = parseOutbound(outbound, capture); err != nil {
				return err
			}
			for _, p := range udp {
				if p == 0 || p > 65535 {
					return fault.New(fault.Invalid, "--allow-udp %d: not a port", p)
				}
				o.AllowUDP = append(o.AllowUDP, uint16(p))
			}
			logConfig := telemetry.LogConfig{Level: level, Format: "text"}
			o.Log = telemetry.NewLogger(os.Stderr, logConfig).Logger
			unwatch() // from here on signals are the program's
			*code, err = run.Run(context.WithoutCancel(cmd.Context()), o, args)
			return err
		},
	}
	f := c.Flags()
	f.SetInterspersed(false)
	f.StringVar(&o.Socket, "socket", envOr("LEGATION_SOCKET", DefaultConfig().Socket), "the agent's public socket")
	f.StringVar(&o.SPIFFEID, "spiffe-id", "", "which identity, where several match")
	f.BoolVar(&capture, "capture", false, "transparent capture by nftables; needs root in a network namespace")
	f.StringArrayVar(&inbound, "inbound", nil, "where mTLS is accepted and forwarded: LISTEN=APP, both HOST:PORT; with --capture the program's PORT")
	f.StringArrayVar(&outbound, "outbound", nil, "destination: SERVICE[.NAMESPACE]:PORT[=LISTEN]; without LISTEN a free port is taken")
	f.UintSliceVar(&udp, "allow-udp", nil, "with --capture: UDP port the program may send to, besides DNS (53)")
	f.StringVar(&o.Envoy, "envoy", "", "Envoy binary (default: LEGATION_ENVOY, then PATH)")
	f.Uint32Var(&o.EnvoyUID, "envoy-uid", run.DefaultEnvoyUID, "as root: the user id Envoy runs as")
	f.StringVar(&o.User, "user", "", "as root: whom the program runs as, NAME or UID[:GID]")
	f.IntVar(&o.Concurrency, "envoy-concurrency", 2, "Envoy's worker threads")
	f.DurationVar(&o.ReadyTimeout, "ready-timeout", 30*time.Second, "how long the program waits for its identity and its Envoy")
	f.DurationVar(&o.DrainTime, "drain-time", 5*time.Second, "how long open connections may finish once the program has ended")
	f.StringVar(&level, "log-level", "info", "debug, info, warn or error")
	return c
}

func envOr(name, otherwise string) string {
	if v := os.Getenv(name); v != "" {
		return v
	}
	return otherwise
}

func parseInbound(list []string, capture bool) ([]*nodev1.Inbound, error) {
	var out []*nodev1.Inbound
	for _, s := range list {
		listen, app, both := strings.Cut(s, "=")
		if capture {
			port, err := strconv.ParseUint(s, 10, 16)
			if err != nil || port == 0 {
				return nil, fault.New(fault.Invalid, "--inbound %q: with --capture write the program's port, e.g. 8080", s)
			}
			out = append(out, &nodev1.Inbound{App: fmt.Sprintf("127.0.0.1:%d", port)})
			continue
		}
		for _, a := range []string{listen, app} {
			if _, _, err := net.SplitHostPort(a); err != nil || !both {
				return nil, fault.New(fault.Invalid, "--inbound %q: write LISTEN=APP, e.g. 0.0.0.0:15443=127.0.0.1:8080", s)
			}
		}
		out = append(out, &nodev1.Inbound{Listen: listen, App: app})
	}
	return out, nil
}

func parseOutbound(list []string, capture bool) ([]*nodev1.Outbound, error) {
	if capture && len(list) > 0 {
		return nil, fault.New(fault.Invalid, "--outbound is for explicit ports; with --capture every declared service is reached by its address")
	}
	var out []*nodev1.Outbound
	for _, s := range list {
		target, listen, _ := strings.Cut(s, "=")
		service, port, err := net.SplitHostPort(target)
		n, perr := strconv.ParseUint(port, 10, 16)
		if err != nil || perr != nil || service == "" || n == 0 {
			return nil, fault.New(fault.Invalid, "--outbound %q: write SERVICE:PORT or SERVICE:PORT=LISTEN, e.g. featurestore:8080=127.0.0.1:9001", s)
		}
		if listen != "" {
			if _, _, err := net.SplitHostPort(listen); err != nil {
				return nil, fault.New(fault.Invalid, "--outbound %q: %q is not HOST:PORT", s, listen)
			}
		}
		out = append(out, &nodev1.Outbound{Service: service, Port: uint32(n), Listen: listen})
	}
	return out, nil
}
