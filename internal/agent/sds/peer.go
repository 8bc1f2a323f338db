package sds

import (
	"strings"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	"github.com/legation-io/legation/internal/distribute"
	"github.com/legation-io/legation/internal/fault"
	"google.golang.org/genproto/googleapis/rpc/status"
)

// begin checks what every request has, and returns its type.
func (p *peer) begin(node *corev3.Node, typeURL, implied string, names ...[]string) (string, error) {
	if id := node.GetId(); id != "" && p.at.OnRequestNode != nil {
		p.node.Do(func() { p.at.OnRequestNode(clip(id, maxNodeID)) })
	}
	if typeURL == "" {
		typeURL = implied
	}
	if typeURL == "" {
		return "", fault.New(fault.Invalid, "an aggregated request names no type_url; every request of an ADS stream must")
	}
	if len(typeURL) > maxName {
		return "", fault.New(fault.Limited, "a type_url of %d bytes; the limit is %d", len(typeURL), maxName)
	}
	for _, list := range names {
		for _, name := range list {
			if len(name) > maxName {
				return "", fault.New(fault.Limited, "a resource name of %d bytes (%s…); the limit is %d", len(name), clip(name, 64), maxName)
			}
		}
	}
	return typeURL, nil
}

// refusal is the text of a NACK, which it logs; "" is an ACK.
func (p *peer) refusal(typ string, detail *status.Status) string {
	if detail == nil {
		return ""
	}
	reason := clip(strings.TrimSpace(detail.GetMessage()), maxReason)
	if reason == "" {
		reason = "refused without a reason"
	}
	p.server.warn(p.log, "nack "+typ, "the proxy refused an update and keeps what it had", "type", typ, "reason", reason)
	return reason
}

// missing says once per name and stream, and counts, which names asked for
// cannot be served.
func (p *peer) missing(r *distribute.Response) {
	for _, name := range r.Missing {
		key := r.Type + "\x00" + name
		if _, ok := p.explained[key]; ok || len(p.explained) >= p.server.p.MaxNames {
			continue
		}
		p.explained[key] = struct{}{}
		p.server.metrics.missing.Inc()
		p.server.warn(p.log, "missing "+name, "a name that was asked for cannot be served; the stream stays open and gets it when it exists",
			"type", r.Type, "name", name, "reason", p.at.explain(r.Type, name))
	}
}

func (a *Attachment) explain(typ, name string) string {
	if a.Missing != nil {
		if why := a.Missing(typ, name); why != "" {
			return why
		}
	}
	return "nothing this subscriber may see has that name"
}

func clip(s string, n int) string {
	if len(s) > n {
		s = s[:n]
	}
	return strings.ToValidUTF8(s, "?")
}
