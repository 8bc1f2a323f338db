package cli

import (
	"errors"
	"fmt"
	"io"
	"time"

	adminv1 "github.com/legation-io/legation/api/admin/v1"
	"github.com/legation-io/legation/internal/fault"
	"github.com/spf13/cobra"
)

func tokenCommand(o *options) *cobra.Command {
	c := &cobra.Command{Use: "token", Short: "Join tokens"}
	var node string
	var ttl time.Duration
	create := &cobra.Command{
		Use:   "create --node NAME",
		Short: "Make a single-use join token and print it with the bundle's hash",
		Long: `Create makes a token that admits one node once. It is shown now and never
again: only its hash is kept. The bundle's hash lets the agent recognise this
control plane; an agent without a pinned bundle or hash does not start.`,
		Example: "  legation token create --node web-1\n  legation token create --node web-1 -o json | jq -r .token",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return o.admin(cmd.Context(), func(c adminv1.AdminClient) error {
				r, err := c.CreateToken(cmd.Context(), &adminv1.CreateTokenRequest{TrustDomain: o.trustDomain, Namespace: o.namespace, Node: node, TtlSeconds: int64(ttl / time.Second)})
				if err != nil {
					return err
				}
				view := struct {
					Token      string `json:"token"`
					Node       string `json:"node"`
					ExpiresAt  string `json:"expiresAt"`
					BundleHash string `json:"bundleHash"`
				}{r.Token, r.Node, stamp(r.ExpiresAtUnix), r.BundleHash}
				if o.output == "json" || o.output == "yaml" {
					return o.print(view, table{})
				}
				fmt.Fprintf(o.out, "token:        %s\nnode:         %s\nexpires:      %s (in %s)\nbundle hash:  %s\n", view.Token, view.Node, view.ExpiresAt, until(r.ExpiresAtUnix), view.BundleHash)
				trustDomain := o.trustDomain
				if b, err := c.GetBundle(cmd.Context(), &adminv1.GetBundleRequest{}); err == nil {
					trustDomain = b.Bundle.GetTrustDomain()
				}
				fmt.Fprintf(o.errOut, "\non %s, with the token in FILE:\n  legation-agent serve --trust-domain %s --server HOST:15012 --join-token-file FILE --bundle-hash %s\n", view.Node, trustDomain, view.BundleHash)
				return nil
			})
		},
	}
	create.Flags().StringVar(&node, "node", "", "node that the token admits")
	create.Flags().DurationVar(&ttl, "ttl", 10*time.Minute, "how long the token can be used")
	_ = create.MarkFlagRequired("node")
	c.AddCommand(create)
	return c
}

type nodeView struct {
	Name        string `json:"name"`
	SPIFFEID    string `json:"spiffeID"`
	Method      string `json:"method"`
	AttestedAt  string `json:"attestedAt"`
	Serial      string `json:"serial"`
	ExpiresAt   string `json:"expiresAt"`
	Banned      bool   `json:"banned"`
	BanReason   string `json:"banReason,omitempty"`
	Connected   bool   `json:"connected"`
	Since       string `json:"since,omitempty"`
	Version     string `json:"version,omitempty"`
	Subscribers uint32 `json:"subscribers"`
	Entries     uint32 `json:"entries"`
}

func viewNode(n *adminv1.Node) nodeView {
	return nodeView{n.Name, n.SpiffeId, n.Method, stamp(n.AttestedAtUnix), n.Serial, stamp(n.ExpiresAtUnix), n.Banned, n.BanReason, n.Connected, stamp(n.SinceUnix), n.Version, n.Subscribers, n.Entries}
}

func nodeState(n *adminv1.Node) string {
	switch {
	case n.Banned:
		return "banned"
	case n.Connected:
		return "connected"
	}
	return "away"
}

func nodeCommand(o *options) *cobra.Command {
	c := &cobra.Command{Use: "node", Short: "Attested nodes"}
	list := func(cmd *cobra.Command, name string) error {
		return o.admin(cmd.Context(), func(c adminv1.AdminClient) error {
			r, err := c.ListNodes(cmd.Context(), &adminv1.ListNodesRequest{TrustDomain: o.trustDomain, Name: name})
			if err != nil {
				return err
			}
			t := table{
				heading:  []string{"NAME", "STATE", "FOR", "EXPIRES", "SUBSCRIBERS", "ENTRIES", "SPIFFE ID", "METHOD", "SERIAL", "VERSION"},
				wideFrom: 6, none: "no nodes yet; admit one: legation token create --node NAME",
			}
			views := []nodeView{}
			for _, n := range r.Nodes {
				views = append(views, viewNode(n))
				t.names = append(t.names, n.Name)
				t.rows = append(t.rows, []string{n.Name, nodeState(n), since(n.SinceUnix), until(n.ExpiresAtUnix), fmt.Sprint(n.Subscribers), fmt.Sprint(n.Entries), n.SpiffeId, n.Method, n.Serial, n.Version})
			}
			if name != "" && len(views) == 1 {
				if o.output == "table" {
					o.output = "yaml"
				}
				return o.print(views[0], t)
			}
			return o.print(views, t)
		})
	}
	c.AddCommand(&cobra.Command{Use: "list", Short: "List nodes", Args: cobra.NoArgs, RunE: func(cmd *cobra.Command, _ []string) error { return list(cmd, "") }})
	c.AddCommand(&cobra.Command{Use: "show NAME", Short: "Show one node", Args: cobra.ExactArgs(1), ValidArgsFunction: first(o.nodeNames), RunE: func(cmd *cobra.Command, args []string) error { return list(cmd, args[0]) }})
	var reason string
	ban := &cobra.Command{
		Use: "ban NAME",
		Long: `Ban ends a node's streams at once, revokes its certificate and every
certificate that was issued through it, and refuses it until "node unban".
After that it attests anew, with a new token.`,
		Example: "  legation node ban web-1 --reason 'disk was stolen'",
		Short:   "Ban a node: its streams end at once, its certificates are revoked, it can renew nothing", Args: cobra.ExactArgs(1), ValidArgsFunction: first(o.nodeNames),
		RunE: func(cmd *cobra.Command, args []string) error {
			return o.admin(cmd.Context(), func(c adminv1.AdminClient) error {
				r, err := c.BanNode(cmd.Context(), &adminv1.BanNodeRequest{TrustDomain: o.trustDomain, Name: args[0], Reason: reason})
				if err != nil {
					return err
				}
				if o.output == "json" || o.output == "yaml" {
					return o.print(map[string]any{"node": viewNode(r.Node), "revokedCertificates": r.RevokedCertificates}, table{})
				}
				fmt.Fprintf(o.out, "%s banned, %s revoked\n", args[0], plural(int(r.RevokedCertificates), "certificate"))
				return nil
			})
		},
	}
	ban.Flags().StringVar(&reason, "reason", "", "kept with the node and in the audit trail")
	c.AddCommand(ban)
	c.AddCommand(&cobra.Command{
		Use: "unban NAME", Short: "Let a banned node attest again", Args: cobra.ExactArgs(1), ValidArgsFunction: first(o.nodeNames),
		RunE: func(cmd *cobra.Command, args []string) error { return o.lift(cmd, "", args[0], 0) },
	})
	return c
}

func liftCommand(o *options) *cobra.Command {
	var wait time.Duration
	c := &cobra.Command{
		Example: "  legation lift spiffe://example.org/ns/default/sa/ingestion",
		Use:     "lift SPIFFE-ID", Short: "End the block that a revocation put on an identity", Args: cobra.ExactArgs(1), ValidArgsFunction: first(o.spiffeIDs()),
		Long: `Lift lets an identity be issued again. Certificates that were revoked stay
revoked: workloads get new ones. The command waits until the connected nodes
have acknowledged it, and until no Envoy of "legation-agent run" is seen to
present a revoked certificate. Programs that hold no Envoy ask again by
themselves.`,
		RunE: func(cmd *cobra.Command, args []string) error { return o.lift(cmd, args[0], "", wait) },
	}
	c.Flags().DurationVar(&wait, "wait", 10*time.Second, "how long to wait until the identity is served again")
	return c
}

func (o *options) lift(cmd *cobra.Command, id, node string, wait time.Duration) error {
	if id == "" && node == "" {
		return fault.New(fault.Invalid, "name a SPIFFE ID or a node")
	}
	return o.admin(cmd.Context(), func(c adminv1.AdminClient) error {
		stream, err := c.Lift(cmd.Context(), &adminv1.LiftRequest{TrustDomain: o.trustDomain, SpiffeId: id, Node: node, WaitMillis: wait.Milliseconds()})
		if err != nil {
			return err
		}
		var last *adminv1.LiftProgress
		for last == nil || !last.Done {
			p, err := stream.Recv()
			if errors.Is(err, io.EOF) {
				return errors.New("the server ended the call without an answer; see: legation status")
			}
			if err != nil {
				return err
			}
			if last == nil && !p.Done {
				fmt.Fprintf(o.errOut, "lifted after %s; waiting for those who enforce the block\n", millis(p.CommittedNanos))
			}
			last = p
		}
		incomplete := func() error {
			if len(last.Missing) == 0 {
				return nil
			}
			return fault.New(fault.Unavailable, "the block is lifted, and %d that enforced it did not follow within %s; see: legation status", len(last.Missing), wait)
		}
		if o.output == "json" || o.output == "yaml" {
			err := o.print(liftView{last.Lifted, append([]string{}, last.Missing...)}, table{})
			return errors.Join(err, incomplete())
		}
		fmt.Fprintln(o.out, last.Lifted)
		for _, m := range last.Missing {
			fmt.Fprintf(o.out, "missing        %s\n", m)
		}
		return incomplete()
	})
}

type liftView struct {
	Lifted  string   `json:"lifted"`
	Missing []string `json:"missing"`
}
