package server

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/legation-io/legation/internal/telemetry"
	"github.com/legation-io/legation/sdk/secretmem"
	"github.com/spf13/cobra"
)

// Command is "legation server".
func Command() *cobra.Command {
	var path string
	flags := DefaultConfig()
	c := &cobra.Command{
		Use:   "server",
		Short: "Run the control plane",
		Long: `Server runs a control plane: one process, its store embedded in the data
directory, nothing else to install. At the first start it makes the trust
domain's root and issuing CA. Flags override the configuration file.

SIGHUP reads the file again: what can change live is applied, and what needs a
restart is named in the log.`,
		Example: "  legation server --trust-domain example.org --data-dir /var/lib/legation\n  legation server --config /etc/legation/server.yaml",
		Args:    cobra.NoArgs,
	}
	f := c.Flags()
	f.StringVar(&path, "config", "", "configuration file (YAML)")
	f.StringVar(&flags.TrustDomain, "trust-domain", "", "name of the trust domain; cannot be changed later")
	f.StringVar(&flags.DataDir, "data-dir", flags.DataDir, "where the store and the sealed keys live")
	f.StringVar(&flags.Listen, "listen", flags.Listen, "address for agents and operators (mTLS)")
	f.StringVar(&flags.Metrics, "metrics", flags.Metrics, "address for metrics and health; empty is off")
	f.StringVar(&flags.AdminSocket, "admin-socket", flags.AdminSocket, "Unix socket of the admin API (0600)")
	f.StringVar(&flags.KEKFile, "kek-file", "", "key-encryption key; default <data-dir>/kek, made at first start")
	f.StringSliceVar(&flags.DNSNames, "dns-name", nil, "further DNS name of the server's certificate")
	f.StringVar(&flags.Log.Level, "log-level", flags.Log.Level, "debug, info, warn or error")
	f.StringVar(&flags.Log.Format, "log-format", flags.Log.Format, "text or json")
	load := func() (Config, error) {
		cfg, err := LoadConfig(path)
		if err != nil {
			return cfg, err
		}
		for name, set := range map[string]func(){
			"trust-domain": func() { cfg.TrustDomain = flags.TrustDomain }, "data-dir": func() { cfg.DataDir = flags.DataDir },
			"listen": func() { cfg.Listen = flags.Listen }, "metrics": func() { cfg.Metrics = flags.Metrics },
			"admin-socket": func() { cfg.AdminSocket = flags.AdminSocket }, "kek-file": func() { cfg.KEKFile = flags.KEKFile },
			"dns-name": func() { cfg.DNSNames = flags.DNSNames }, "log-level": func() { cfg.Log.Level = flags.Log.Level }, "log-format": func() { cfg.Log.Format = flags.Log.Format },
		} {
			if c.Flags().Changed(name) {
				set()
			}
		}
		for _, p := range []*string{&cfg.DataDir, &cfg.AdminSocket} {
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
			fmt.Fprintln(os.Stderr, "legation: the process could not be hardened:", err)
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
		return Run(ctx, cfg, log.Logger, nil)
	}
	return c
}
