package cli

import (
	"fmt"
	"time"

	localv1 "github.com/legation-io/legation/api/local/v1"
	"github.com/spf13/cobra"
)

type connectionView struct {
	Session    string `json:"session"`
	SPIFFEID   string `json:"spiffeID"`
	Direction  string `json:"direction"`
	Local      string `json:"local"`
	Remote     string `json:"remote"`
	PeerID     string `json:"peerID"`
	PeerSerial string `json:"peerSerial"`
	TLSVersion string `json:"tlsVersion"`
	Cipher     string `json:"cipher"`
	Group      string `json:"group"`
	Since      string `json:"since"`
	Cluster    string `json:"cluster,omitempty"`
}

type failureView struct {
	Session     string `json:"session"`
	SPIFFEID    string `json:"spiffeID"`
	Direction   string `json:"direction"`
	Remote      string `json:"remote"`
	Destination string `json:"destination,omitempty"`
	PeerID      string `json:"peerID,omitempty"`
	Cause       string `json:"cause"`
	Reason      string `json:"reason"`
	At          string `json:"at"`
}

func connectionsCommand(o *options) *cobra.Command {
	var req localv1.ConnectionsRequest
	var failures bool
	var limit int
	c := &cobra.Command{
		Use:     "connections",
		Aliases: []string{"conns"},
		Short:   "Who is on each live connection of this machine's Envoys, and which handshakes failed and why",
		Long: `Connections asks this machine's agent, which reads its Envoys' access logs: the
peer's SPIFFE ID and serial, TLS version, key exchange and cipher, as Envoy saw
them. --failures shows handshakes that failed, by cause, in Envoy's words;
docs/handshake-failures.md says of each cause what to do.`,
		Example: "  legation connections -o wide\n  legation connections --failures",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			req.TrustDomain = o.trustDomain
			return o.local(cmd.Context(), func(c localv1.AgentAdminClient) error {
				r, err := c.Connections(cmd.Context(), &req)
				if err != nil {
					return err
				}
				if failures {
					if n := len(r.Failures); limit > 0 && n > limit {
						r.Failures = r.Failures[:limit]
						fmt.Fprintf(o.errOut, "the latest %d of %d; give --limit 0 for all\n", limit, n)
					}
					return o.printFailures(r.Failures)
				}
				return o.printConnections(r)
			})
		},
	}
	c.Flags().StringVar(&req.Session, "session", "", "only this session")
	c.Flags().StringVar(&req.SpiffeId, "spiffe-id", "", "only Envoys of this identity")
	c.Flags().BoolVar(&failures, "failures", false, "the latest handshakes that failed instead")
	c.Flags().IntVar(&limit, "limit", 20, "with --failures: at most so many, the latest first; 0 is all")
	return c
}

func (o *options) printConnections(r *localv1.ConnectionsResponse) error {
	t := table{
		heading:  []string{"OF", "DIRECTION", "PEER", "TLS", "KEY EXCHANGE", "CIPHER", "FOR", "LOCAL", "REMOTE", "PEER SERIAL", "SESSION"},
		wideFrom: 7, none: "no connections",
	}
	views := []connectionView{}
	for _, c := range r.Connections {
		at := time.Unix(0, c.SinceUnixNano)
		views = append(views, connectionView{c.Session, c.SpiffeId, c.Direction, c.Local, c.Remote, c.PeerId, c.PeerSerial, c.TlsVersion, c.Cipher, c.Group, at.UTC().Format(time.RFC3339Nano), c.Cluster})
		t.names = append(t.names, c.Local+"-"+c.Remote)
		t.rows = append(t.rows, []string{c.SpiffeId, c.Direction, dash(c.PeerId), dash(c.TlsVersion), dash(c.Group), dash(c.Cipher), age(time.Since(at)), c.Local, c.Remote, c.PeerSerial, c.Session})
	}
	return o.print(views, t)
}

func (o *options) printFailures(list []*localv1.HandshakeFailure) error {
	t := table{
		heading:  []string{"AGO", "OF", "DIRECTION", "REMOTE", "CAUSE", "REASON", "PEER", "DESTINATION", "SESSION"},
		wideFrom: 6, none: "no failed handshakes",
	}
	views := []failureView{}
	for i, f := range list {
		at := time.Unix(0, f.AtUnixNano)
		views = append(views, failureView{f.Session, f.SpiffeId, f.Direction, f.Remote, f.Destination, f.PeerId, f.Cause, f.Reason, at.UTC().Format(time.RFC3339Nano)})
		t.names = append(t.names, fmt.Sprint(i))
		t.rows = append(t.rows, []string{age(time.Since(at)), f.SpiffeId, f.Direction, f.Remote, f.Cause, dash(f.Reason), dash(f.PeerId), dash(f.Destination), f.Session})
	}
	return o.print(views, t)
}
