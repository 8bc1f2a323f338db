package ca

import (
	"net/netip"
	"slices"
	"strings"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/legation-io/legation/internal/fault"
)

// maxNames bounds the DNS and IP names of one certificate.
const maxNames = 100

// Paths of the system's own identities.
const (
	ownPrefix   = "/legation/"
	agentPrefix = "/legation/agent/"
)

// checkID holds what each profile may be named. The caller has authorised
// the identity; this is the second lock, so that no entry can mint the
// system's own.
func (a *Authority) checkID(profile Profile, id spiffeid.ID, node string) error {
	if id.IsZero() {
		return fault.New(fault.Invalid, "no SPIFFE ID given")
	}
	if id.TrustDomain() != a.td {
		return fault.New(fault.Denied, "%s is of another trust domain; this authority signs for %s", id, a.td.Name())
	}
	path := id.Path()
	if path == "" {
		return fault.New(fault.Denied, "%s names the trust domain itself; an X.509-SVID names a workload, with a path", id)
	}
	switch profile {
	case ProfileAgent:
		if node == "" || path != agentPrefix+node {
			return fault.New(fault.Denied, "%s is not the identity of the agent on node %q, which is spiffe://%s%s%s", id, node, a.td.Name(), agentPrefix, node)
		}
	case ProfileServer:
		if !strings.HasPrefix(path, ownPrefix) || strings.HasPrefix(path, agentPrefix) {
			return fault.New(fault.Denied, "%s is not the identity of a server, which is below spiffe://%s%s", id, a.td.Name(), ownPrefix)
		}
	default:
		if strings.HasPrefix(path, ownPrefix) {
			return fault.New(fault.Denied, "%s is one of the system's own identities; paths below %s are not for workloads and operators", id, ownPrefix)
		}
	}
	return nil
}

// checkNames validates each DNS name and address by itself and returns them
// without duplicates, in the order given.
func checkNames(dns []string, ips []netip.Addr) ([]string, []netip.Addr, error) {
	if n := len(dns) + len(ips); n > maxNames {
		return nil, nil, fault.New(fault.Invalid, "%d DNS names and addresses in one certificate, over the limit of %d", n, maxNames)
	}
	var names []string
	for i, name := range dns {
		if err := checkDNS(name); err != nil {
			return nil, nil, fault.New(fault.Invalid, "DNS name %d, %q: %w", i+1, name, err)
		}
		if !slices.Contains(names, name) {
			names = append(names, name)
		}
	}
	var addrs []netip.Addr
	for i, ip := range ips {
		ip = ip.Unmap()
		switch {
		case !ip.IsValid():
			return nil, nil, fault.New(fault.Invalid, "address %d is not an IP address", i+1)
		case ip.Zone() != "":
			return nil, nil, fault.New(fault.Invalid, "address %d, %s, has a zone, which means nothing to a peer", i+1, ip)
		case ip.IsUnspecified(), ip.IsMulticast(), ip == netip.AddrFrom4([4]byte{255, 255, 255, 255}):
			return nil, nil, fault.New(fault.Invalid, "address %d, %s, is nobody's own", i+1, ip)
		}
		if !slices.Contains(addrs, ip) {
			addrs = append(addrs, ip)
		}
	}
	return names, addrs, nil
}

type nameError string

func (e nameError) Error() string { return string(e) }

// checkDNS wants a host name in the preferred syntax (RFC 1034 3.5, RFC 5280
// 4.2.1.6), lower case, no wildcard, not an address.
func checkDNS(name string) error {
	switch {
	case name == "":
		return nameError("is empty")
	case len(name) > 253:
		return nameError("is longer than 253 characters")
	case strings.HasPrefix(name, "*"):
		return nameError("is a wildcard; a workload's certificate names hosts, write each")
	case strings.HasSuffix(name, "."):
		return nameError("ends with a dot; write it without")
	}
	digits := true
	for label := range strings.SplitSeq(name, ".") {
		if label == "" || len(label) > 63 {
			return nameError("has an empty label, or one longer than 63 characters")
		}
		if label[0] == '-' || label[len(label)-1] == '-' {
			return nameError("has a label that starts or ends with '-'")
		}
		digits = true
		for _, c := range []byte(label) {
			switch {
			case c >= '0' && c <= '9':
			case c >= 'a' && c <= 'z', c == '-':
				digits = false
			case c >= 'A' && c <= 'Z':
				return nameError("has upper-case letters; write it in lower case")
			default:
				return nameError("has a character that host names do not have; write letters, digits, '-' and '.' (other scripts in punycode)")
			}
		}
	}
	if digits {
		return nameError("ends with a number, as addresses do; write addresses as addresses")
	}
	return nil
}
