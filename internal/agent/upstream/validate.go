package upstream

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/sha256"
	"crypto/x509"
	"math/big"
	"strconv"
	"strings"
	"time"

	nodev1 "github.com/legation-io/legation/api/node/v1"
	"github.com/legation-io/legation/internal/fault"
	"github.com/legation-io/legation/sdk/chaincheck"
	"github.com/spiffe/go-spiffe/v2/bundle/jwtbundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

func (l *Link) checkEntry(name string, e *nodev1.Entry) error {
	if namespace, rest, ok := strings.Cut(e.GetName(), "/"); !ok || rest == "" || namespace == "" || namespace != e.GetNamespace() || name != e.GetName() {
		return fault.New(fault.Invalid, "it calls itself %q in namespace %q", e.GetName(), e.GetNamespace())
	}
	id, err := spiffeid.FromString(e.GetSpiffeId())
	if err != nil {
		return fault.New(fault.Invalid, "SPIFFE ID %q: %w", e.GetSpiffeId(), err)
	}
	if id.TrustDomain() != l.p.TrustDomain || id.Path() == "" || id.Path() == "/legation" || strings.HasPrefix(id.Path(), "/legation/") {
		return fault.New(fault.Invalid, "SPIFFE ID %s is not one a workload of %s may have", id, l.p.TrustDomain)
	}
	if len(e.GetSelectors()) == 0 {
		return fault.New(fault.Invalid, "it has no selectors and would match every caller")
	}
	for _, s := range e.GetSelectors() {
		if typ, value, ok := strings.Cut(s, ":"); !ok || typ == "" || value == "" {
			return fault.New(fault.Invalid, "selector %q is not \"type:value\"", s)
		}
	}
	if e.GetX509TtlSeconds() < 0 || e.GetJwtTtlSeconds() < 0 {
		return fault.New(fault.Invalid, "it has a negative lifetime")
	}
	return nil
}

// checkPolicy: a policy is what it is called. What it says is for the programs
// to judge, which compile it.
func checkPolicy(name string, p *nodev1.Policy) error {
	if namespace, rest, ok := strings.Cut(p.GetName(), "/"); !ok || rest == "" || namespace == "" || namespace != p.GetNamespace() || name != p.GetName() {
		return fault.New(fault.Invalid, "it calls itself %q in namespace %q", p.GetName(), p.GetNamespace())
	}
	if len(p.GetModules()) == 0 || p.GetVersion() == 0 || p.GetRegoVersion() > 1 {
		return fault.New(fault.Invalid, "it has %d modules, version %d and Rego version %d", len(p.GetModules()), p.GetVersion(), p.GetRegoVersion())
	}
	return nil
}

// checkBundle: a bundle speaks for the domain it is named after, anchors
// chains by CA certificates alone, and its sequence only grows.
func checkBundle(name string, b, held *nodev1.Bundle) error {
	td, err := spiffeid.TrustDomainFromString(name)
	if err != nil || td.Name() != name || b.GetTrustDomain() != name {
		return fault.New(fault.Invalid, "it is for trust domain %q", b.GetTrustDomain())
	}
	if held != nil && b.GetSequence() < held.GetSequence() {
		return fault.New(fault.Invalid, "its sequence number %d is lower than %d, which is held", b.GetSequence(), held.GetSequence())
	}
	roots, err := parseCerts(b.GetX509Roots())
	if err != nil {
		return fault.New(fault.Invalid, "a root does not parse: %w", err)
	}
	if len(roots) == 0 || len(roots) > 64 {
		return fault.New(fault.Invalid, "it has %d roots", len(roots))
	}
	for _, r := range roots {
		if !r.BasicConstraintsValid || !r.IsCA || r.KeyUsage&x509.KeyUsageCertSign == 0 {
			return fault.New(fault.Invalid, "certificate %s in it is not a CA", r.SerialNumber.Text(16))
		}
		if !bytes.Equal(r.RawIssuer, r.RawSubject) || r.CheckSignatureFrom(r) != nil {
			return fault.New(fault.Invalid, "certificate %s in it is not self-signed; only roots belong into a bundle", r.SerialNumber.Text(16))
		}
	}
	if len(b.GetJwks()) > 0 {
		if _, err := jwtbundle.Parse(td, b.GetJwks()); err != nil {
			return fault.New(fault.Invalid, "its JWT keys: %w", err)
		}
	}
	return nil
}

// checkCRL: lists are usable, and the number only grows.
func checkCRL(name string, c, held *nodev1.CRL) error {
	if c.GetAuthority() != name || name == "" {
		return fault.New(fault.Invalid, "it is of authority %q", c.GetAuthority())
	}
	if held != nil && c.GetNumber() < held.GetNumber() {
		return fault.New(fault.Invalid, "its number %d is lower than %d, which is held", c.GetNumber(), held.GetNumber())
	}
	if len(c.GetLists()) == 0 {
		return fault.New(fault.Invalid, "it has no lists")
	}
	if _, err := chaincheck.NewCRLSet(c.GetLists()); err != nil {
		return err
	}
	number := new(big.Int).SetUint64(c.GetNumber())
	for _, der := range c.GetLists() {
		if list, err := x509.ParseRevocationList(der); err == nil && list.Number != nil && list.Number.Cmp(number) == 0 {
			return nil
		}
	}
	return fault.New(fault.Invalid, "none of its %d lists has the number %d", len(c.GetLists()), c.GetNumber())
}

func checkRevocation(name string, r *nodev1.Revocation) error {
	if r.GetId() != name || name == "" {
		return fault.New(fault.Invalid, "its id is %q", r.GetId())
	}
	if r.GetSpiffeId() != "" && r.GetNode() != "" {
		return fault.New(fault.Invalid, "it names both an identity and a node")
	}
	if r.GetSpiffeId() != "" {
		if _, err := spiffeid.FromString(r.GetSpiffeId()); err != nil {
			return fault.New(fault.Invalid, "SPIFFE ID %q: %w", r.GetSpiffeId(), err)
		}
	}
	if r.GetSpiffeId() == "" && r.GetNode() == "" && len(r.GetSerials()) == 0 {
		return fault.New(fault.Invalid, "it names nothing")
	}
	for _, s := range r.GetSerials() {
		if s == "" || len(s) > 40 || strings.Trim(s, "0123456789abcdef") != "" {
			return fault.New(fault.Invalid, "serial %.80q is not lower-case hex", s)
		}
	}
	return nil
}

// maxAhead is how far ahead of our clock a heartbeat may be.
const maxAhead = 10 * time.Minute

// HeartbeatText is what a heartbeat's signature is over (Heartbeat in
// node.proto).
func HeartbeatText(authority string, number uint64, unix int64) []byte {
	return []byte("legation-crl-heartbeat-v1\n" + authority + "\n" + strconv.FormatUint(number, 10) + "\n" + strconv.FormatInt(unix, 10) + "\n")
}

// checkHeartbeat: signed by an issuing CA that a root of ours signed and that
// is not revoked; time and CRL number only grow.
func (l *Link) checkHeartbeat(name string, h *nodev1.Heartbeat, v *View) error {
	if h.GetAuthority() != name || name == "" || strings.Contains(name, "\n") {
		return fault.New(fault.Invalid, "it is of authority %q", h.GetAuthority())
	}
	if held := v.Heartbeats[name]; held != nil && h.GetCrlNumber() < held.GetCrlNumber() {
		return fault.New(fault.Invalid, "its CRL number %d is lower than %d, which is held", h.GetCrlNumber(), held.GetCrlNumber())
	}
	now := l.p.Clock.Now()
	if at := time.Unix(h.GetUnixSeconds(), 0); at.Sub(now) > maxAhead {
		return fault.New(fault.Invalid, "it is from %s, and the clock here says %s", at.UTC().Format(time.RFC3339), now.UTC().Format(time.RFC3339))
	}
	issuer, err := x509.ParseCertificate(h.GetIssuer())
	if err != nil {
		return fault.New(fault.Invalid, "its issuer does not parse: %w", err)
	}
	if err := l.checkIssuer(issuer, v, now); err != nil {
		return err
	}
	key, ok := issuer.PublicKey.(*ecdsa.PublicKey)
	digest := sha256.Sum256(HeartbeatText(h.GetAuthority(), h.GetCrlNumber(), h.GetUnixSeconds()))
	if !ok || !ecdsa.VerifyASN1(key, digest[:], h.GetSignature()) {
		return fault.New(fault.Invalid, "its signature is not by the key of %s", issuer.Subject)
	}
	return nil
}

// signedBy names an issuer and a root by their DER's hashes.
type signedBy [2][sha256.Size]byte

// signed reports whether root signed issuer. The last answer is remembered:
// heartbeats come every few seconds from the same two.
func (l *Link) signed(issuer, root *x509.Certificate) bool {
	key := signedBy{sha256.Sum256(issuer.Raw), sha256.Sum256(root.Raw)}
	if last := l.lastSigned.Load(); last != nil && *last == key {
		return true
	}
	if issuer.CheckSignatureFrom(root) != nil {
		return false
	}
	l.lastSigned.Store(&key)
	return true
}

func (l *Link) checkIssuer(issuer *x509.Certificate, v *View, now time.Time) error {
	trustDomain := l.p.TrustDomain.Name()
	roots, err := parseCerts(v.Bundles[trustDomain].GetX509Roots())
	if err != nil || len(roots) == 0 {
		return fault.New(fault.Invalid, "there is no bundle to verify its issuer with")
	}
	if !issuer.BasicConstraintsValid || !issuer.IsCA || now.Before(issuer.NotBefore) || now.After(issuer.NotAfter) {
		return fault.New(fault.Invalid, "its issuer %s is not a CA that is valid now", issuer.Subject)
	}
	for _, root := range roots {
		if issuer.Equal(root) {
			return nil
		}
		if !l.signed(issuer, root) {
			continue
		}
		if set := crlSet(v); set != nil {
			if r := set.Lookup(issuer, root, now, nil); r.Status == chaincheck.StatusRevoked {
				return fault.New(fault.Denied, "its issuer %s is revoked", issuer.Subject)
			}
		}
		return nil
	}
	return fault.New(fault.Invalid, "its issuer %s was not signed by a root of %s", issuer.Subject, trustDomain)
}
