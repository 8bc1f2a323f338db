// Package cli is the command line of the control plane: one file per noun or
// verb, each a client of package api. The answer goes to stdout, talk to
// stderr; an error ends with the next thing to try.
package cli

import (
	"context"
	"crypto/tls"
	"io"
	"os"
	"strings"
	"time"

	adminv1 "github.com/legation-io/legation/api/admin/v1"
	localv1 "github.com/legation-io/legation/api/local/v1"
	"github.com/legation-io/legation/internal/commandline"
	"github.com/legation-io/legation/internal/fault"
	"github.com/legation-io/legation/internal/version"
	"github.com/spf13/cobra"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/spiffetls/tlsconfig"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
)

// DefaultAdminSocket is where the control plane's admin API listens.
const DefaultAdminSocket = "/run/legation/admin.sock"

// DefaultAgentSocket is the agent's own admin socket.
const DefaultAgentSocket = "/run/legation/agent-admin.sock"

// options are the flags every command has.
type options struct {
	server      string
	agent       string
	trustDomain string
	namespace   string
	output      string
	allSpaces   bool
	out         io.Writer
	errOut      io.Writer
	in          io.Reader
}

// New builds the whole command tree. serve runs the control plane.
func New(serve *cobra.Command) *cobra.Command {
	o := &options{}
	root := &cobra.Command{
		Use:   "legation",
		Short: "Identity, mutual TLS and revocation for workloads",
		Long: `Legation gives every workload a cryptographic identity, enforces mutual TLS
between workloads without touching their code, and can take an identity away
from all of them at once.

  legation server          run the control plane
  legation apply -f FILE   declare identities and services
  legation token create    admit a node
  legation status          what runs, what is behind, what is wrong`,
		Version: version.Version,
	}
	f := root.PersistentFlags()
	f.StringVar(&o.server, "server", env("LEGATION_SERVER", "unix://"+DefaultAdminSocket), "admin API: unix://PATH, or HOST:PORT by mTLS with the SVID at SPIFFE_ENDPOINT_SOCKET")
	f.StringVar(&o.agent, "agent", env("LEGATION_AGENT", "unix://"+DefaultAgentSocket), "the agent's admin socket (why, status of a node)")
	f.StringVar(&o.trustDomain, "trust-domain", env("LEGATION_TRUST_DOMAIN", ""), "refuse to talk to a server of another trust domain")
	f.StringVarP(&o.namespace, "namespace", "n", env("LEGATION_NAMESPACE", ""), "namespace (default \"default\" where one is needed)")
	f.BoolVarP(&o.allSpaces, "all-namespaces", "A", false, "all namespaces")
	f.StringVarP(&o.output, "output", "o", "table", "table, wide, json, yaml or name")
	_ = root.RegisterFlagCompletionFunc("output", cobra.FixedCompletions([]string{"table", "wide", "json", "yaml", "name"}, cobra.ShellCompDirectiveNoFileComp))
	root.PersistentPreRunE = func(c *cobra.Command, _ []string) error {
		o.out, o.errOut, o.in = c.OutOrStdout(), plain{c.ErrOrStderr()}, c.InOrStdin()
		if o.output != "json" { // which programs read as it is
			o.out = plain{o.out}
		}
		switch o.output {
		case "table", "wide", "json", "yaml", "name":
			return nil
		}
		return fault.New(fault.Invalid, "-o %s: write table, wide, json, yaml or name", o.output)
	}
	if serve != nil {
		root.AddCommand(serve)
	}
	root.AddCommand(
		applyCommand(o), getCommand(o), deleteCommand(o),
		tokenCommand(o), nodeCommand(o), certCommand(o),
		revokeCommand(o), liftCommand(o), bundleCommand(o),
		statusCommand(o), whyCommand(o), connectionsCommand(o), checkCommand(o), versionCommand(o),
	)
	commandline.Strict(root)
	return root
}

func versionCommand(o *options) *cobra.Command {
	c := commandline.Version()
	text := c.RunE
	c.RunE = func(c *cobra.Command, args []string) error {
		if o.output == "json" || o.output == "yaml" {
			return o.print(map[string]string{"version": version.Version}, table{})
		}
		return text(c, args)
	}
	return c
}

func env(name, otherwise string) string {
	if v := os.Getenv(name); v != "" {
		return v
	}
	return otherwise
}

// Main runs the tree and returns the exit code.
func Main(ctx context.Context, root *cobra.Command) int {
	return commandline.Report(os.Stderr, "legation", root.ExecuteContext(ctx))
}

// dial connects to "unix://PATH" or, with the caller's own SVID, to HOST:PORT.
// What it has to wait for it says on talk.
func dial(ctx context.Context, target string, talk io.Writer) (*grpc.ClientConn, func(), error) {
	if path, ok := strings.CutPrefix(target, "unix://"); ok {
		if err := reach(ctx, path); err != nil {
			return nil, nil, err
		}
		conn, err := grpc.NewClient("unix://"+path, append(callOptions(), grpc.WithTransportCredentials(insecure.NewCredentials()))...)
		if err != nil {
			return nil, nil, err
		}
		return conn, func() { conn.Close() }, nil
	}
	if err := checkAddress(target); err != nil {
		return nil, nil, err
	}
	if os.Getenv("SPIFFE_ENDPOINT_SOCKET") == "" {
		return nil, nil, fault.New(fault.Invalid, "--server %s needs an operator's SVID: set SPIFFE_ENDPOINT_SOCKET to the agent's socket, or use unix://PATH on the server's machine", target)
	}
	first, stop := context.WithTimeout(ctx, identityWithin)
	defer stop()
	source, err := operatorSource(first, talk)
	if err != nil {
		return nil, nil, err
	}
	own, err := source.GetX509SVID()
	if err != nil {
		source.Close()
		return nil, nil, err
	}
	server, err := spiffeid.FromSegments(own.ID.TrustDomain(), "legation", "server")
	if err != nil {
		source.Close()
		return nil, nil, err
	}
	cfg := tlsconfig.MTLSClientConfig(source, source, tlsconfig.AuthorizeID(server))
	cfg.MinVersion = tls.VersionTLS13
	conn, err := grpc.NewClient(target, append(callOptions(), grpc.WithTransportCredentials(credentials.NewTLS(cfg)))...)
	if err != nil {
		source.Close()
		return nil, nil, err
	}
	return conn, func() { conn.Close(); source.Close() }, nil
}

const (
	// answerWithin bounds the wait for one answer; streams say themselves how
	// long they last.
	answerWithin = time.Minute
	// maxAnswer bounds one answer: a large fleet's status is more than gRPC's
	// 4 MB.
	maxAnswer = 80 << 20
)

func callOptions() []grpc.DialOption {
	return []grpc.DialOption{
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxAnswer)),
		grpc.WithUnaryInterceptor(func(ctx context.Context, method string, req, reply any, conn *grpc.ClientConn, invoke grpc.UnaryInvoker, opts ...grpc.CallOption) error {
			ctx, stop := context.WithTimeout(ctx, answerWithin)
			defer stop()
			return invoke(ctx, method, req, reply, conn, opts...)
		}),
	}
}

// admin calls f with a client of the control plane.
func (o *options) admin(ctx context.Context, f func(adminv1.AdminClient) error) error {
	conn, done, err := dial(ctx, o.server, o.errOut)
	if err != nil {
		return err
	}
	defer done()
	return f(adminv1.NewAdminClient(conn))
}

// local calls f with a client of this machine's agent.
func (o *options) local(ctx context.Context, f func(localv1.AgentAdminClient) error) error {
	conn, done, err := dial(ctx, o.agent, o.errOut)
	if err != nil {
		return err
	}
	defer done()
	return f(localv1.NewAgentAdminClient(conn))
}
