package mtls

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/legation-io/legation/sdk/identity"
)

// Request is what an Authorizer decides on: a peer whose chain is verified.
type Request struct {
	Peer identity.Peer
	// Path is the verified path, leaf first, trust anchor last.
	Path []*x509.Certificate
	// Host is, for a client, the host that it wanted, in lower case and
	// without port; for a server, the name that the client asked for (SNI),
	// which may be empty and which the client chose.
	Host string
	// State is the connection's; during the handshake not all is set.
	State *tls.ConnectionState
}

// Authorizer says which verified peers may be talked to. The zero value is
// refused by every configuration: letting in everybody must be said, by an
// AuthorizeFunc. An Authorizer that was made of impossible parts (no ID, a
// pattern that does not parse) carries that error to the configuration.
type Authorizer struct {
	check func(context.Context, *Request) error
	words string
	host  func(string) error  // not nil: it needs the host that a client wanted
	roots []*x509.Certificate // not nil: the server is verified by name, under these
	err   error
}

// String says in words whom it lets in.
func (a Authorizer) String() string { return a.words }

// authorize returns a *RefusedError.
func (a Authorizer) authorize(ctx context.Context, r *Request) error {
	if err := a.ask(ctx, r); err != nil {
		return &RefusedError{Peer: r.Peer, Host: r.Host, Err: err}
	}
	return nil
}

// ask is check, with a panic as a refusal: a mistake in a program's function
// costs one connection, as in net/http, and lets nobody in.
func (a Authorizer) ask(ctx context.Context, r *Request) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("the authoriser panicked: %v", p)
		}
	}()
	return a.check(ctx, r)
}

// RefusedError is a peer that is who it says, and is not let in.
type RefusedError struct {
	Peer identity.Peer
	// Host as in Request.
	Host string
	// Err is the Authorizer's reason.
	Err error
}

// Error implements error.
func (e *RefusedError) Error() string {
	return fmt.Sprintf("peer %s is verified and not authorised: %v", e.Peer.ID, e.Err)
}

// Unwrap returns Err.
func (e *RefusedError) Unwrap() error { return e.Err }

func bad(format string, args ...any) Authorizer { return Authorizer{err: fmt.Errorf(format, args...)} }

// AuthorizeID lets in peers with exactly one of these SPIFFE IDs.
func AuthorizeID(ids ...spiffeid.ID) Authorizer {
	if len(ids) == 0 {
		return bad("AuthorizeID names no SPIFFE ID, and so would let in nobody")
	}
	if slices.ContainsFunc(ids, spiffeid.ID.IsZero) {
		return bad("AuthorizeID has a zero SPIFFE ID")
	}
	words := "one of " + join(ids)
	if len(ids) == 1 {
		words = ids[0].String()
	}
	set := setOf(ids)
	return Authorizer{words: words, check: func(_ context.Context, r *Request) error {
		if _, ok := set[r.Peer.ID]; !ok {
			return fmt.Errorf("wanted is %s", words)
		}
		return nil
	}}
}

// AuthorizeMemberOf lets in every workload of these trust domains.
func AuthorizeMemberOf(domains ...spiffeid.TrustDomain) Authorizer {
	if len(domains) == 0 {
		return bad("AuthorizeMemberOf names no trust domain, and so would let in nobody")
	}
	if slices.ContainsFunc(domains, spiffeid.TrustDomain.IsZero) {
		return bad("AuthorizeMemberOf has a zero trust domain")
	}
	words := "a member of " + join(domains)
	set := setOf(domains)
	return Authorizer{words: words, check: func(_ context.Context, r *Request) error {
		if _, ok := set[r.Peer.ID.TrustDomain()]; !ok {
			return fmt.Errorf("wanted is %s", words)
		}
		return nil
	}}
}

// AuthorizePath lets in members of one trust domain whose path matches one of
// the patterns. A pattern is a SPIFFE ID's path in which "*" stands for any
// characters, also none, within a segment, and a segment "**" for any number
// of segments, also none: "/ns/*/sa/model-*", "/ns/ml/**". Matching takes time
// linear in the path.
func AuthorizePath(domain spiffeid.TrustDomain, patterns ...string) Authorizer {
	switch {
	case domain.IsZero():
		return bad("AuthorizePath needs a trust domain: paths of another may be equal")
	case len(patterns) == 0:
		return bad("AuthorizePath names no pattern, and so would let in nobody")
	}
	compiled := make([]*pattern, len(patterns))
	for n, p := range patterns {
		var err error
		if compiled[n], err = compilePattern(p); err != nil {
			return bad("AuthorizePath: %w", err)
		}
	}
	words := fmt.Sprintf("a member of %s with a path like %s", domain, strings.Join(patterns, " or "))
	return Authorizer{words: words, check: func(_ context.Context, r *Request) error {
		if r.Peer.ID.MemberOf(domain) {
			path := r.Peer.ID.Path()
			for _, p := range compiled {
				if p.match(path) {
					return nil
				}
			}
		}
		return fmt.Errorf("wanted is %s", words)
	}}
}

// AuthorizeFunc lets in the peers for which f returns nil; its error is the
// reason of a refusal. f is called in the handshake, and again when the
// Source's trust changes or Recheck is called; it must be quick and safe for
// concurrent use. A panic is a refusal.
func AuthorizeFunc(f func(context.Context, *Request) error) Authorizer {
	if f == nil {
		return bad("AuthorizeFunc has no function")
	}
	return Authorizer{check: f, words: "a peer that the program's own function accepts"}
}

// AuthorizeSPIFFE takes an authoriser of go-spiffe, a
// spiffetls/tlsconfig.Authorizer.
func AuthorizeSPIFFE(f func(id spiffeid.ID, verifiedChains [][]*x509.Certificate) error) Authorizer {
	if f == nil {
		return bad("AuthorizeSPIFFE has no function")
	}
	return Authorizer{words: "a peer that a go-spiffe authoriser accepts", check: func(_ context.Context, r *Request) error {
		return f(r.Peer.ID, [][]*x509.Certificate{r.Path})
	}}
}

// AuthorizeAnyOf lets in whom at least one of them lets in.
func AuthorizeAnyOf(any ...Authorizer) Authorizer {
	combined, ok := combine("AuthorizeAnyOf", " or ", any)
	if !ok {
		return combined
	}
	if combined.host != nil {
		combined.host = func(host string) error {
			var reasons []error
			for _, a := range any {
				if a.host == nil {
					return nil // it is the peer that counts there
				}
				err := a.host(host)
				if err == nil {
					return nil
				}
				reasons = append(reasons, err)
			}
			return errors.Join(reasons...)
		}
	}
	combined.check = func(ctx context.Context, r *Request) error {
		var reasons []error
		for _, a := range any {
			err := a.check(ctx, r)
			if err == nil {
				return nil
			}
			reasons = append(reasons, err)
		}
		return errors.Join(reasons...)
	}
	return combined
}

// AuthorizeAllOf lets in whom all of them let in.
func AuthorizeAllOf(all ...Authorizer) Authorizer {
	combined, ok := combine("AuthorizeAllOf", " and ", all)
	if !ok {
		return combined
	}
	if combined.host != nil {
		combined.host = func(host string) error {
			for _, a := range all {
				if a.host != nil {
					if err := a.host(host); err != nil {
						return err
					}
				}
			}
			return nil
		}
	}
	combined.check = func(ctx context.Context, r *Request) error {
		for _, a := range all {
			if err := a.check(ctx, r); err != nil {
				return err
			}
		}
		return nil
	}
	return combined
}

func combine(name, and string, parts []Authorizer) (Authorizer, bool) {
	if len(parts) == 0 {
		return bad("%s is empty", name), false
	}
	var out Authorizer
	words := make([]string, len(parts))
	for n, a := range parts {
		switch {
		case a.err != nil:
			return bad("%s: %w", name, a.err), false
		case a.check == nil:
			return bad("%s has a zero Authorizer", name), false
		case a.roots != nil:
			return bad("%s: AuthorizeServerName verifies another kind of certificate, and stands alone", name), false
		}
		if a.host != nil {
			out.host = a.host // the caller combines them
		}
		words[n] = a.words
	}
	out.words = strings.Join(words, and)
	return out, true
}

// AuthorizeHosts is for clients: the server at a host must have one of the
// SPIFFE IDs that the host has here. Hosts are names or IP addresses without
// port, in any case; a host that is not here is refused.
func AuthorizeHosts(hosts map[string][]spiffeid.ID) Authorizer {
	if len(hosts) == 0 {
		return bad("AuthorizeHosts names no host")
	}
	byHost := make(map[string]map[spiffeid.ID]struct{}, len(hosts))
	for host, ids := range hosts {
		if host == "" || len(ids) == 0 || slices.ContainsFunc(ids, spiffeid.ID.IsZero) {
			return bad("AuthorizeHosts: host %q needs a name and at least one SPIFFE ID, none of them zero", host)
		}
		if _, twice := byHost[strings.ToLower(host)]; twice {
			return bad("AuthorizeHosts: host %q is named twice, in other cases", strings.ToLower(host))
		}
		byHost[strings.ToLower(host)] = setOf(ids)
	}
	known := func(host string) error {
		if _, ok := byHost[host]; !ok {
			return fmt.Errorf("no SPIFFE ID is named for the host %q; there are: %s", host, strings.Join(slices.Sorted(maps.Keys(byHost)), ", "))
		}
		return nil
	}
	return Authorizer{words: "the servers named by host", host: known, check: func(_ context.Context, r *Request) error {
		if err := known(r.Host); err != nil {
			return err
		}
		if _, ok := byHost[r.Host][r.Peer.ID]; !ok {
			return fmt.Errorf("wanted at the host %q is one of %s", r.Host, join(slices.Collect(maps.Keys(byHost[r.Host]))))
		}
		return nil
	}}
}

// AuthorizeServerName is for clients of servers with a public certificate, e.g.
// one of sdk/acmecert: the server's chain is verified under these roots and for
// the host that was dialled (RFC 9525), by chaincheck.VerifyServerName; it has
// no SPIFFE ID. Under it MaxLifetime has no default, and Revocation must be
// chaincheck.Prefer unless every public CA's CRL is at hand. The Source's
// certificate is presented when the server asks for it.
//
// The roots are those of the CAs that are expected, which their operators
// publish (the machine's own list cannot be read out in Go). Roots given here
// never verify a client.
func AuthorizeServerName(roots []*x509.Certificate) Authorizer {
	if len(roots) == 0 {
		return bad("AuthorizeServerName has no roots to verify servers with; give those of the CAs that are expected")
	}
	return Authorizer{words: "the server that the dialled name belongs to", roots: slices.Clone(roots),
		check: func(context.Context, *Request) error { return nil }}
}

func setOf[T comparable](list []T) map[T]struct{} {
	set := make(map[T]struct{}, len(list))
	for _, v := range list {
		set[v] = struct{}{}
	}
	return set
}

func join[T fmt.Stringer](list []T) string {
	words := make([]string, len(list))
	for n, v := range list {
		words[n] = v.String()
	}
	slices.Sort(words)
	return strings.Join(words, ", ")
}
