package cli

import (
	"encoding/pem"
	"errors"
	"fmt"
	"maps"
	"sort"
	"strings"
	"time"

	adminv1 "github.com/legation-io/legation/api/admin/v1"
	localv1 "github.com/legation-io/legation/api/local/v1"
	nodev1 "github.com/legation-io/legation/api/node/v1"
	"github.com/legation-io/legation/internal/fault"
	"github.com/spf13/cobra"
)

func pemBlock(kind string, der []byte) string {
	return string(pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}))
}

type behindView struct {
	Node       string `json:"node"`
	Subscriber string `json:"subscriber"`
	Resource   string `json:"resource"`
	Error      string `json:"error,omitempty"`
	Since      string `json:"since"`
}

type statusView struct {
	TrustDomain string            `json:"trustDomain"`
	Version     string            `json:"version"`
	StartedAt   string            `json:"startedAt"`
	Revision    int64             `json:"storeRevision"`
	Authorities []authorityView   `json:"authorities"`
	Nodes       []nodeView        `json:"nodes"`
	Behind      []behindView      `json:"behind"`
	Valid       uint32            `json:"certificatesValid"`
	Revoked     uint32            `json:"certificatesRevoked"`
	Subscribers uint32            `json:"subscribers"`
	Resources   map[string]uint32 `json:"resources"`
	Renewals    []renewalView     `json:"renewals"`
	Problems    []string          `json:"problems"`
}

type renewalView struct {
	Name           string `json:"name"`
	Issuer         string `json:"issuer"`
	Ready          bool   `json:"ready"`
	Message        string `json:"message,omitempty"`
	NotAfter       string `json:"notAfter,omitempty"`
	RenewalTime    string `json:"renewalTime,omitempty"`
	Revision       uint32 `json:"revision"`
	FailedAttempts uint32 `json:"failedAttempts"`
}

type authorityView struct {
	Name           string `json:"name"`
	RootExpires    string `json:"rootExpires"`
	IssuingExpires string `json:"issuingExpires"`
	CRLNumber      uint64 `json:"crlNumber"`
	Revoked        uint32 `json:"revoked"`
}

func statusCommand(o *options) *cobra.Command {
	var agent bool
	c := &cobra.Command{
		Use: "status", Short: "What runs, what is attached, what is behind, and what is wrong with what to do about it", Args: cobra.NoArgs,
		Long: `Status asks the control plane: its authority, nodes, subscribers, what was
sent and is not acknowledged, and what was refused and why. With --node it asks
this machine's agent: its link, its identities, the Envoys it serves.

Every problem comes with what to do about it, and makes the command end with 1.`,
		Example: "  legation status\n  legation status --node\n  legation status -o json | jq .problems",
		RunE: func(cmd *cobra.Command, _ []string) error {
			if agent {
				return o.local(cmd.Context(), func(c localv1.AgentAdminClient) error {
					r, err := c.Status(cmd.Context(), &localv1.StatusRequest{TrustDomain: o.trustDomain})
					if err != nil {
						return err
					}
					return o.printAgent(r)
				})
			}
			return o.admin(cmd.Context(), func(c adminv1.AdminClient) error {
				r, err := c.Status(cmd.Context(), &adminv1.StatusRequest{TrustDomain: o.trustDomain})
				if err != nil {
					return err
				}
				return o.printStatus(r)
			})
		},
	}
	c.Flags().BoolVar(&agent, "node", false, "the agent of this machine instead of the control plane")
	return c
}

func (o *options) printStatus(r *adminv1.StatusResponse) error {
	if o.output == "json" || o.output == "yaml" {
		v := statusView{
			TrustDomain: r.TrustDomain, Version: r.Version, StartedAt: stamp(r.StartedAtUnix), Revision: r.StoreRevision,
			Valid: r.CertificatesValid, Revoked: r.CertificatesRevoked, Subscribers: r.Subscribers, Resources: map[string]uint32{},
			Authorities: []authorityView{}, Nodes: []nodeView{}, Behind: []behindView{}, Renewals: []renewalView{}, Problems: append([]string{}, r.Problems...),
		}
		for _, c := range r.Renewals {
			v.Renewals = append(v.Renewals, renewalView{c.Name, c.Issuer, c.Ready, c.Message, stamp(c.NotAfterUnix), stamp(c.RenewalUnix), c.Revision, c.FailedAttempts})
		}
		maps.Copy(v.Resources, r.Resources)
		for _, a := range r.Authorities {
			v.Authorities = append(v.Authorities, authorityView{a.Name, stamp(a.RootExpiresUnix), stamp(a.IssuingExpiresUnix), a.CrlNumber, a.Revoked})
		}
		for _, n := range r.Nodes {
			v.Nodes = append(v.Nodes, viewNode(n))
		}
		for _, b := range r.Behind {
			v.Behind = append(v.Behind, behindView{b.Node, b.State.Subscriber, b.State.Type + " " + b.State.Name, b.State.Error, time.Unix(0, b.State.SinceUnixNano).UTC().Format(time.RFC3339Nano)})
		}
		return o.print(v, table{})
	}
	w := o.out
	fmt.Fprintf(w, "trust domain   %s\n", r.TrustDomain)
	fmt.Fprintf(w, "control plane  %s, up %s, store revision %d\n", r.Version, since(r.StartedAtUnix), r.StoreRevision)
	for _, a := range r.Authorities {
		fmt.Fprintf(w, "authority      %s: root ends in %s, issuing CA in %s, CRL %d with %d revoked\n", a.Name, until(a.RootExpiresUnix), until(a.IssuingExpiresUnix), a.CrlNumber, a.Revoked)
	}
	fmt.Fprintf(w, "certificates   %d valid, %d revoked\n", r.CertificatesValid, r.CertificatesRevoked)
	for _, c := range r.Renewals {
		fmt.Fprintf(w, "renewed        %s ends in %s, next in %s, revision %d%s\n", c.Name, until(c.NotAfterUnix), until(c.RenewalUnix), c.Revision, failing(c))
	}
	kinds := make([]string, 0, len(r.Resources))
	for k := range r.Resources {
		kinds = append(kinds, k)
	}
	sort.Strings(kinds)
	var declared []string
	for _, k := range kinds {
		declared = append(declared, fmt.Sprintf("%d %s", r.Resources[k], k))
	}
	fmt.Fprintf(w, "declared       %s\n", dash(strings.Join(declared, ", ")))
	fmt.Fprintf(w, "nodes          %d\n", len(r.Nodes))
	for _, n := range r.Nodes {
		state := nodeState(n)
		if n.SinceUnix != 0 {
			state += " for " + since(n.SinceUnix)
		}
		fmt.Fprintf(w, "  %-20s %-19s %s, %s, certificate ends in %s\n", n.Name, state, plural(int(n.Subscribers), "subscriber"), entries(n.Entries), until(n.ExpiresAtUnix))
	}
	fmt.Fprintf(w, "behind         %d\n", len(r.Behind))
	for _, b := range r.Behind {
		fmt.Fprintf(w, "  %s %s: %s %s since %s%s\n", b.Node, b.State.Subscriber, b.State.Type, b.State.Name, age(time.Since(time.Unix(0, b.State.SinceUnixNano))), refused(b.State))
	}
	return o.printProblems(r.Problems)
}

func failing(c *adminv1.RenewalStatus) string {
	if c.FailedAttempts == 0 {
		return ""
	}
	return fmt.Sprintf(", failed %s", plural(int(c.FailedAttempts), "time"))
}

func entries(n uint32) string {
	if n == 1 {
		return "1 entry"
	}
	return fmt.Sprintf("%d entries", n)
}

func refused(s *nodev1.SubscriberState) string {
	if s.Error == "" {
		return ""
	}
	return ", refused: " + within(s.Error)
}

// printProblems lists what is wrong; a problem is exit code 1 for scripts.
func (o *options) printProblems(list []string) error {
	if len(list) == 0 {
		fmt.Fprintln(o.out, "problems       none")
		return nil
	}
	fmt.Fprintln(o.out, "problems")
	for _, p := range list {
		fmt.Fprintf(o.out, "  - %s\n", within(p))
	}
	return errors.New(plural(len(list), "problem") + ", listed above")
}

func (o *options) printAgent(r *localv1.StatusResponse) error {
	if o.output == "json" || o.output == "yaml" {
		return o.print(viewAgent(r), table{})
	}
	w := o.out
	fmt.Fprintf(w, "node           %s (%s)\n", r.Node, r.SpiffeId)
	fmt.Fprintf(w, "agent          %s, up %s, own certificate ends in %s\n", r.Version, since(r.StartedAtUnix), until(r.AgentSvidExpiresUnix))
	link := "connected to " + r.Server
	if !r.Connected {
		link = "NOT connected: " + dash(r.LastError)
	}
	fmt.Fprintf(w, "control plane  %s, for %s\n", link, since(r.SinceUnix))
	fmt.Fprintf(w, "entries        %d\nCRL            %d, confirmed %s ago\n", r.Entries, r.CrlNumber, since(r.HeartbeatUnix))
	fmt.Fprintf(w, "identities     %d\n", len(r.Identities))
	for _, i := range r.Identities {
		fmt.Fprintf(w, "  %s (%s) serial %.16s ends in %s, renewed in %s\n", i.SpiffeId, i.Instance, i.Serial, until(i.NotAfterUnix), until(i.RenewAtUnix))
	}
	fmt.Fprintf(w, "subscribers    %d\n", len(r.Subscribers))
	for _, s := range r.Subscribers {
		fmt.Fprintf(w, "  %s %s", s.Subscriber, s.SpiffeId)
		if s.Served != nil {
			fmt.Fprintf(w, ", presents %.16s, ends in %s", s.Served.Serial, until(s.Served.NotAfterUnix))
		}
		fmt.Fprintln(w)
		if s.Exposed != "" {
			fmt.Fprintf(w, "    exposed: %s\n", s.Exposed)
		}
		for _, st := range s.States {
			if st.Error != "" || st.SentVersion != st.AckedVersion {
				fmt.Fprintf(w, "    behind: %s %s%s\n", st.Type, st.Name, refused(st))
			}
		}
	}
	return o.printProblems(r.Problems)
}

type agentView struct {
	TrustDomain string           `json:"trustDomain"`
	Node        string           `json:"node"`
	SPIFFEID    string           `json:"spiffeID"`
	Version     string           `json:"version"`
	StartedAt   string           `json:"startedAt"`
	Connected   bool             `json:"connected"`
	Server      string           `json:"server,omitempty"`
	Since       string           `json:"since,omitempty"`
	LastError   string           `json:"lastError,omitempty"`
	Entries     uint32           `json:"entries"`
	CRLNumber   uint64           `json:"crlNumber"`
	HeartbeatAt string           `json:"heartbeatAt,omitempty"`
	ExpiresAt   string           `json:"ownCertificateExpiresAt"`
	Identities  []identityView   `json:"identities"`
	Subscribers []subscriberView `json:"subscribers"`
	Problems    []string         `json:"problems"`
}

type identityView struct {
	SPIFFEID string `json:"spiffeID"`
	Entry    string `json:"entry"`
	Instance string `json:"instance,omitempty"`
	Serial   string `json:"serial,omitempty"`
	NotAfter string `json:"notAfter,omitempty"`
	RenewAt  string `json:"renewAt,omitempty"`
}

type subscriberView struct {
	Subscriber string   `json:"subscriber"`
	SPIFFEID   string   `json:"spiffeID,omitempty"`
	PID        int32    `json:"pid,omitempty"`
	Behind     []string `json:"behind"`
	// Presents is the serial that its Envoy was last seen to present.
	Presents      string `json:"presents,omitempty"`
	PresentsUntil string `json:"presentsUntil,omitempty"`
	// Exposed says what is missing between the program and its Envoy.
	Exposed string `json:"exposed,omitempty"`
}

func viewIdentities(list []*localv1.IdentityStatus) []identityView {
	views := []identityView{}
	for _, i := range list {
		views = append(views, identityView{i.SpiffeId, i.Entry, i.Instance, i.Serial, stamp(i.NotAfterUnix), stamp(i.RenewAtUnix)})
	}
	return views
}

func viewAgent(r *localv1.StatusResponse) agentView {
	v := agentView{
		TrustDomain: r.TrustDomain, Node: r.Node, SPIFFEID: r.SpiffeId, Version: r.Version, StartedAt: stamp(r.StartedAtUnix),
		Connected: r.Connected, Server: r.Server, Since: stamp(r.SinceUnix), LastError: r.LastError, Entries: r.Entries,
		CRLNumber: r.CrlNumber, HeartbeatAt: stamp(r.HeartbeatUnix), ExpiresAt: stamp(r.AgentSvidExpiresUnix),
		Identities: viewIdentities(r.Identities), Subscribers: []subscriberView{}, Problems: append([]string{}, r.Problems...),
	}
	for _, s := range r.Subscribers {
		sv := subscriberView{Subscriber: s.Subscriber, SPIFFEID: s.SpiffeId, PID: s.Pid, Behind: []string{}, Exposed: s.Exposed}
		if s.Served != nil {
			sv.Presents, sv.PresentsUntil = s.Served.Serial, stamp(s.Served.NotAfterUnix)
		}
		for _, st := range s.States {
			if st.Error != "" || st.SentVersion != st.AckedVersion {
				sv.Behind = append(sv.Behind, st.Type+" "+st.Name+refused(st))
			}
		}
		v.Subscribers = append(v.Subscribers, sv)
	}
	return v
}

func whyCommand(o *options) *cobra.Command {
	var req localv1.WhyRequest
	c := &cobra.Command{
		Use:   "why (--pid N | --selector TYPE:VALUE... | --sds-name NAME)",
		Short: "Why a process has the identity it has, or none",
		Long: `Why asks this machine's agent, over the admin socket that its owner may use:
which selectors a process has, which entry they match, which serial it holds
and until when. Where nothing matches it names the entries that come nearest,
on any node, and what is missing.`,
		Example: "  legation why --pid 4711\n  legation why --selector unix:uid:1000 --selector unix:path:/usr/bin/python3.11\n" +
			"  legation why --sds-name retail-service-cert",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if req.Pid == 0 && len(req.Selectors) == 0 && req.SdsName == "" {
				return fault.New(fault.Invalid, "name a process (--pid), selectors (--selector) or an SDS name (--sds-name)")
			}
			req.TrustDomain = o.trustDomain
			return o.local(cmd.Context(), func(c localv1.AgentAdminClient) error {
				r, err := c.Why(cmd.Context(), &req)
				if err != nil {
					return err
				}
				return o.printWhy(r)
			})
		},
	}
	f := c.Flags()
	f.Int32Var(&req.Pid, "pid", 0, "a running process")
	f.StringArrayVar(&req.Selectors, "selector", nil, "what is true of a process; may be given again")
	f.StringVar(&req.SdsName, "sds-name", "", "a name that an Envoy asks for")
	return c
}

func (o *options) printWhy(r *localv1.WhyResponse) error {
	type candidate struct {
		Entry    string   `json:"entry"`
		SPIFFEID string   `json:"spiffeID"`
		Node     string   `json:"node"`
		Missing  []string `json:"missing"`
		Reason   string   `json:"reason"`
	}
	if o.output == "json" || o.output == "yaml" {
		cs := []candidate{}
		for _, c := range r.Candidates {
			cs = append(cs, candidate{c.Entry, c.SpiffeId, c.Node, append([]string{}, c.Missing...), c.Reason})
		}
		return o.print(map[string]any{"pid": r.Pid, "selectors": append([]string{}, r.Selectors...), "identities": viewIdentities(r.Identities), "candidates": cs, "summary": r.Summary}, table{})
	}
	fmt.Fprintln(o.out, r.Summary)
	if len(r.Selectors) > 0 {
		fmt.Fprintln(o.out, "\nselectors of the process:")
		for _, s := range r.Selectors {
			fmt.Fprintf(o.out, "  %s\n", s)
		}
	}
	if len(r.Identities) > 0 {
		fmt.Fprintln(o.out, "\nentries that match:")
		for _, i := range r.Identities {
			fmt.Fprintf(o.out, "  %s  %s", i.Entry, i.SpiffeId)
			if i.Serial != "" {
				fmt.Fprintf(o.out, "  serial %.16s, ends in %s", i.Serial, until(i.NotAfterUnix))
			}
			fmt.Fprintln(o.out)
		}
	}
	if len(r.Candidates) > 0 {
		fmt.Fprintln(o.out, "\nentries that come near:")
		for _, c := range r.Candidates {
			fmt.Fprintf(o.out, "  %s  %s  %s\n", c.Entry, c.SpiffeId, c.Reason)
		}
	}
	return nil
}
