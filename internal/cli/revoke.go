package cli

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	adminv1 "github.com/legation-io/legation/api/admin/v1"
	"github.com/legation-io/legation/internal/fault"
	"github.com/spf13/cobra"
)

type revokeView struct {
	ID                string   `json:"id"`
	CRLNumber         uint64   `json:"crlNumber"`
	Serials           []string `json:"serials"`
	Enforcing         uint32   `json:"enforcing"`
	Acknowledged      uint32   `json:"acknowledged"`
	Delivered         uint32   `json:"delivered"`
	Unknown           uint32   `json:"unknown"`
	Missing           []string `json:"missing"`
	CommittedMillis   float64  `json:"committedMillis"`
	AckedMillis       float64  `json:"acknowledgedMillis"`
	ConnectionsClosed uint32   `json:"connectionsClosed"`
	ConnectionsFailed uint32   `json:"connectionsFailed"`
	ConnectionsMillis float64  `json:"connectionsMillis"`
}

func revokeCommand(o *options) *cobra.Command {
	var req adminv1.RevokeRequest
	var wait time.Duration
	c := &cobra.Command{
		Use:   "revoke (SPIFFE-ID | --serial HEX | --node NAME)",
		Short: "Take certificates or an identity away, and say who enforces it",
		Long: `Revoke by serial makes the workload obtain a new key at once. Revoke by SPIFFE
ID takes every certificate of that identity and blocks its issuance until
"legation lift". Revoke by node takes every certificate of that node.

New handshakes are refused as soon as a verifier has the new CRL; open
connections of the revoked identity are ended. The command waits and counts
four classes apart: enforcing (a probed handshake, or our own data plane),
acknowledged (Envoy), delivered (Workload API), unknown (files, CRL pollers).
The connections that it counts are those of Envoys: programs that speak mutual
TLS themselves, with the SDK, end theirs and say so in their own logs.`,
		Example: "  legation revoke spiffe://example.org/ns/default/sa/ingestion --reason 'key leaked'\n  legation revoke --serial 6f02a1",
		Args:    cobra.MaximumNArgs(1),

		ValidArgsFunction: first(o.spiffeIDs()),
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 1 {
				if !strings.HasPrefix(args[0], "spiffe://") {
					return fault.New(fault.Invalid, "%q is not a SPIFFE ID; for a serial write: legation revoke --serial %s", args[0], args[0])
				}
				req.SpiffeId = args[0]
			}
			named := 0
			for _, s := range []string{req.Serial, req.SpiffeId, req.Node} {
				if s != "" {
					named++
				}
			}
			if named != 1 {
				return fault.New(fault.Invalid, "name exactly one: a SPIFFE ID, --serial or --node")
			}
			req.Serial = strings.ToLower(strings.ReplaceAll(req.Serial, ":", ""))
			req.TrustDomain, req.Namespace, req.WaitMillis = o.trustDomain, o.namespace, wait.Milliseconds()
			return o.admin(cmd.Context(), func(c adminv1.AdminClient) error {
				stream, err := c.Revoke(cmd.Context(), &req)
				if err != nil {
					return err
				}
				var last *adminv1.RevokeProgress
				for {
					p, err := stream.Recv()
					if errors.Is(err, io.EOF) {
						break
					}
					if err != nil {
						return err
					}
					if last == nil {
						fmt.Fprintf(o.errOut, "revoked %s in CRL %d after %s; waiting for those who enforce it\n", plural(len(p.Serials), "certificate"), p.CrlNumber, millis(p.CommittedNanos))
					}
					last = p
					if p.Done {
						break
					}
				}
				if last == nil {
					return errors.New("the server ended the call without an answer; see: legation status")
				}
				return o.printRevocation(last)
			})
		},
	}
	f := c.Flags()
	f.StringVar(&req.Serial, "serial", "", "one certificate, by its serial or a unique beginning of it (hex)")
	f.StringVar(&req.SpiffeId, "spiffe-id", "", "an identity (same as the argument)")
	f.StringVar(&req.Node, "node", "", "every certificate of a node")
	f.StringVar(&req.Reason, "reason", "", "kept in the inventory and the audit trail")
	f.DurationVar(&wait, "wait", 5*time.Second, "how long to wait for acknowledgements")
	completeFlags(c, map[string]completer{"spiffe-id": o.spiffeIDs(), "node": o.nodeNames, "serial": o.serials()})
	return c
}

func (o *options) printRevocation(p *adminv1.RevokeProgress) error {
	incomplete := func() error {
		if len(p.Missing) == 0 && p.ConnectionsFailed == 0 {
			return nil
		}
		return fault.New(fault.Unavailable, "%s missing, %s could not be ended; see: legation status", plural(len(p.Missing), "subscriber"), plural(int(p.ConnectionsFailed), "connection"))
	}
	if len(p.Serials) == 0 {
		fmt.Fprintln(o.errOut, "no certificate was revoked: none that is still valid was issued for that; check the spelling with: legation cert list")
	}
	if o.output == "json" || o.output == "yaml" {
		ms := func(n int64) float64 { return float64(n) / 1e6 }
		err := o.print(revokeView{
			p.Id, p.CrlNumber, p.Serials, p.Enforcing, p.Acknowledged, p.Delivered, p.Unknown, append([]string{}, p.Missing...),
			ms(p.CommittedNanos), ms(p.AcknowledgedNanos), p.ConnectionsClosed, p.ConnectionsFailed, ms(p.ConnectionsNanos),
		}, table{})
		return errors.Join(err, incomplete())
	}
	for _, s := range p.Serials {
		fmt.Fprintf(o.out, "revoked        %s\n", s)
	}
	fmt.Fprintf(o.out, "committed      %s\n", millis(p.CommittedNanos))
	fmt.Fprintf(o.out, "enforcing      %d\n", p.Enforcing)
	fmt.Fprintf(o.out, "acknowledged   %d\n", p.Acknowledged)
	fmt.Fprintf(o.out, "delivered      %d\n", p.Delivered)
	fmt.Fprintf(o.out, "unknown        %d\n", p.Unknown)
	if p.AcknowledgedNanos > 0 {
		fmt.Fprintf(o.out, "last of them   %s\n", millis(p.AcknowledgedNanos))
	}
	fmt.Fprintf(o.out, "connections    %d ended", p.ConnectionsClosed)
	if p.ConnectionsNanos > 0 {
		fmt.Fprintf(o.out, " within %s", millis(p.ConnectionsNanos))
	}
	if p.ConnectionsFailed > 0 {
		fmt.Fprintf(o.out, ", %d could not be ended", p.ConnectionsFailed)
	}
	fmt.Fprintln(o.out)
	for _, m := range p.Missing {
		fmt.Fprintf(o.out, "missing        %s\n", m)
	}
	return incomplete()
}

type bundleView struct {
	TrustDomain string          `json:"trustDomain"`
	Hash        string          `json:"hash"`
	X509Roots   []string        `json:"x509Roots"` // PEM
	SPIFFE      json.RawMessage `json:"spiffe"`
}

func viewBundle(r *adminv1.GetBundleResponse) bundleView {
	v := bundleView{TrustDomain: r.Bundle.GetTrustDomain(), Hash: r.Hash, X509Roots: []string{}, SPIFFE: r.SpiffeJson}
	for _, der := range r.Bundle.GetX509Roots() {
		v.X509Roots = append(v.X509Roots, pemBlock("CERTIFICATE", der))
	}
	return v
}

func bundleCommand(o *options) *cobra.Command {
	c := &cobra.Command{Use: "bundle", Short: "The trust bundle"}
	var format string
	show := &cobra.Command{
		Use: "show",
		Long: `Show prints the roots of the trust domain: as PEM, as a SPIFFE bundle (a JWK
set), or only the hash that an agent may be started with.`,
		Short: "Print the trust bundle", Args: cobra.NoArgs,
		Example: "  legation bundle show > bundle.pem\n  legation bundle show --format spiffe",
		RunE: func(cmd *cobra.Command, _ []string) error {
			switch format {
			case "pem", "spiffe", "hash":
			default:
				return fault.New(fault.Invalid, "--format %s: write pem, spiffe or hash", format)
			}
			return o.admin(cmd.Context(), func(c adminv1.AdminClient) error {
				r, err := c.GetBundle(cmd.Context(), &adminv1.GetBundleRequest{TrustDomain: o.trustDomain})
				if err != nil {
					return err
				}
				if o.output == "json" || o.output == "yaml" {
					return o.print(viewBundle(r), table{})
				}
				switch format {
				case "spiffe":
					_, err := fmt.Fprintln(o.out, string(r.SpiffeJson))
					return err
				case "hash":
					_, err := fmt.Fprintln(o.out, r.Hash)
					return err
				}
				for _, der := range r.Bundle.X509Roots {
					fmt.Fprint(o.out, pemBlock("CERTIFICATE", der))
				}
				return nil
			})
		},
	}
	show.Flags().StringVar(&format, "format", "pem", "pem, spiffe (JWK set) or hash")
	completeFlags(show, map[string]completer{"format": cobra.FixedCompletions([]string{"pem", "spiffe", "hash"}, cobra.ShellCompDirectiveNoFileComp)})
	c.AddCommand(show)
	return c
}
