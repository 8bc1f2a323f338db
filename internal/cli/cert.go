package cli

import (
	"fmt"
	"strings"
	"time"

	adminv1 "github.com/legation-io/legation/api/admin/v1"
	"github.com/legation-io/legation/internal/fault"
	"github.com/spf13/cobra"
)

type certView struct {
	Serial           string   `json:"serial"`
	SPIFFEID         string   `json:"spiffeID"`
	Node             string   `json:"node,omitempty"`
	Entry            string   `json:"entry,omitempty"`
	Instance         string   `json:"instance,omitempty"`
	Authority        string   `json:"authority"`
	Profile          string   `json:"profile"`
	IssuedAt         string   `json:"issuedAt"`
	NotBefore        string   `json:"notBefore"`
	NotAfter         string   `json:"notAfter"`
	Lifetime         string   `json:"lifetime"`
	LifetimeReason   string   `json:"lifetimeReason"`
	DNSNames         []string `json:"dnsNames,omitempty"`
	IPAddresses      []string `json:"ipAddresses,omitempty"`
	SHA256           string   `json:"sha256"`
	Revoked          bool     `json:"revoked"`
	RevokedAt        string   `json:"revokedAt,omitempty"`
	RevocationReason string   `json:"revocationReason,omitempty"`
}

func viewCert(c *adminv1.Certificate) certView {
	return certView{
		c.Serial, c.SpiffeId, c.Node, c.Entry, c.Instance, c.Authority, c.Profile,
		stamp(c.IssuedAtUnix), stamp(c.NotBeforeUnix), stamp(c.NotAfterUnix),
		(time.Duration(c.NotAfterUnix-c.IssuedAtUnix) * time.Second).String(), c.LifetimeReason, c.DnsNames, c.IpAddresses, c.Sha256,
		c.Revoked, stamp(c.RevokedAtUnix), c.RevocationReason,
	}
}

func certState(c *adminv1.Certificate) string {
	switch {
	case c.Revoked:
		return "revoked"
	case time.Now().Unix() > c.NotAfterUnix:
		return "expired"
	}
	return "valid"
}

func certCommand(o *options) *cobra.Command {
	c := &cobra.Command{Use: "cert", Aliases: []string{"certificate"}, Short: "The inventory of issued certificates"}
	var req adminv1.ListCertificatesRequest
	var expires days
	list := &cobra.Command{
		Use: "list",
		Long: `List reads the inventory: everything this trust domain signed that has not
expired (with --expired also what has), from the journal that is written before
a certificate leaves the control plane. -o wide adds instance, profile, and why
a certificate has the lifetime it has.`,
		Short: "List issued certificates", Args: cobra.NoArgs,
		Example: "  legation cert list --spiffe-id spiffe://example.org/ns/default/sa/web\n  legation cert list --node web-1 --expires-within 1h -o wide",
		RunE: func(cmd *cobra.Command, _ []string) error {
			req.TrustDomain, req.ExpiresWithinSeconds = o.trustDomain, int64(time.Duration(expires)/time.Second)
			req.Namespace = o.namespace
			return o.admin(cmd.Context(), func(c adminv1.AdminClient) error {
				r, err := c.ListCertificates(cmd.Context(), &req)
				if err != nil {
					return err
				}
				if err := o.printCerts(r.Certificates); err != nil {
					return err
				}
				if int(r.Total) > len(r.Certificates) {
					fmt.Fprintf(o.errOut, "%d of %d shown; give --limit, or narrow it down\n", len(r.Certificates), r.Total)
				}
				return nil
			})
		},
	}
	f := list.Flags()
	f.StringVar(&req.SpiffeId, "spiffe-id", "", "only this identity")
	f.StringVar(&req.Node, "node", "", "only this node")
	f.StringVar(&req.Instance, "instance", "", "only this instance")
	f.StringVar(&req.Serial, "serial", "", "only serials that begin so (hex)")
	f.Var(&expires, "expires-within", "only those that end within this time, e.g. 90m, 24h or 30d")
	f.BoolVar(&req.IncludeExpired, "expired", false, "expired ones too")
	f.Uint32Var(&req.Limit, "limit", 500, "at most so many")
	completeFlags(list, map[string]completer{"spiffe-id": o.spiffeIDs(), "node": o.nodeNames, "serial": o.serials()})
	c.AddCommand(list)

	c.AddCommand(&cobra.Command{
		Use: "show SERIAL",
		Long: `Show takes a serial or a beginning of it that is unique, in hex, with or
without colons.`,
		Example: "  legation cert show 6f02a1",
		Short:   "Show one issued certificate and why it has the lifetime it has", Args: cobra.ExactArgs(1), ValidArgsFunction: first(o.serials()),
		RunE: func(cmd *cobra.Command, args []string) error {
			return o.admin(cmd.Context(), func(c adminv1.AdminClient) error {
				serial := strings.ToLower(strings.ReplaceAll(args[0], ":", ""))
				if serial == "" || strings.Trim(serial, "0123456789abcdef") != "" {
					return fault.New(fault.Invalid, "%q is no serial: write hex digits, as legation cert list shows them", args[0])
				}
				r, err := c.ListCertificates(cmd.Context(), &adminv1.ListCertificatesRequest{TrustDomain: o.trustDomain, Serial: serial, IncludeExpired: true, Limit: 10})
				if err != nil {
					return err
				}
				switch r.Total {
				case 0:
					return fault.New(fault.NotFound, "no certificate has a serial that begins with %s\ntry: legation cert list --expired", serial)
				case 1:
					if o.output == "table" || o.output == "wide" {
						o.output = "yaml"
					}
					return o.print(viewCert(r.Certificates[0]), table{})
				}
				return fault.New(fault.Invalid, "%s matches %d certificates; give more digits, or: legation cert list --serial %s", serial, r.Total, serial)
			})
		},
	})
	c.AddCommand(inspectCommand(o))
	return c
}

func (o *options) printCerts(certs []*adminv1.Certificate) error {
	t := table{
		heading:  []string{"SERIAL", "SPIFFE ID", "NODE", "STATE", "EXPIRES", "INSTANCE", "PROFILE", "ISSUED", "WHY THIS LIFETIME", "SHA-256"},
		wideFrom: 5, none: "no certificates match",
	}
	views := []certView{}
	for _, c := range certs {
		views = append(views, viewCert(c))
		t.names = append(t.names, c.Serial)
		serial := c.Serial
		if o.output == "table" && len(serial) > 16 {
			serial = serial[:16]
		}
		t.rows = append(t.rows, []string{serial, c.SpiffeId, dash(c.Node), certState(c), until(c.NotAfterUnix), dash(c.Instance), c.Profile, stamp(c.IssuedAtUnix), c.LifetimeReason, c.Sha256})
	}
	return o.print(views, t)
}
