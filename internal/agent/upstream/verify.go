package upstream

import (
	"bytes"
	"crypto/sha256"
	"crypto/subtle"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"strings"
	"sync"

	attestnode "github.com/legation-io/legation/internal/attest/node"
	"github.com/legation-io/legation/internal/fault"
	"github.com/legation-io/legation/sdk/chaincheck"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// pin is what the first contact is verified by: configured roots, or those
// that a server showed and whose hash is the pinned one.
type pin struct {
	mu    sync.Mutex
	roots []*x509.Certificate
}

func (p *pin) learn(roots []*x509.Certificate) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.roots = roots
}

func (p *pin) get() []*x509.Certificate {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.roots
}

const hashPrefix = "sha256:"

func parseHash(s string) ([]byte, error) {
	raw, err := hex.DecodeString(strings.TrimPrefix(s, hashPrefix))
	if err != nil || len(raw) != sha256.Size || !strings.HasPrefix(s, hashPrefix) {
		return nil, fault.New(fault.Invalid, "bundle hash %.80q is not \"sha256:\" and 64 hex digits, as legation token create prints it", s)
	}
	return raw, nil
}

// roots are what verifies the control plane now: the bundle it distributed,
// else what the identity was issued under, else the pinned ones; nil when
// only a hash is known.
func (l *Link) roots() []*x509.Certificate {
	if b := l.view.Get().Bundles[l.p.TrustDomain.Name()]; b != nil {
		if roots, err := parseCerts(b.GetX509Roots()); err == nil && len(roots) > 0 {
			return roots
		}
	}
	if roots := l.pinned.get(); len(roots) > 0 {
		return roots
	}
	return l.p.Roots
}

// rootsByHash takes the self-signed certificates that a server presented, in
// their order, if they are the pinned ones.
func rootsByHash(presented []*x509.Certificate, pinned string) ([]*x509.Certificate, error) {
	want, err := parseHash(pinned)
	if err != nil {
		return nil, err
	}
	var roots []*x509.Certificate
	hash := sha256.New()
	for _, c := range presented[min(1, len(presented)):] {
		if c.IsCA && bytes.Equal(c.RawIssuer, c.RawSubject) && c.CheckSignatureFrom(c) == nil {
			roots = append(roots, c)
			hash.Write(c.Raw)
		}
	}
	if len(roots) == 0 {
		return nil, fault.New(fault.Denied, "the server showed no root to compare with the pinned hash; pin the bundle itself (bundleFile)")
	}
	if subtle.ConstantTimeCompare(hash.Sum(nil), want) != 1 {
		return nil, fault.New(fault.Denied, "the server's roots hash to sha256:%x, and %s is pinned: this is another control plane, or an impostor", hash.Sum(nil), pinned)
	}
	return roots, nil
}

// tlsConfig authenticates the server by its SPIFFE ID, and shows the node's
// identity if there is one.
func (l *Link) tlsConfig(id *Identity) *tls.Config {
	config := &tls.Config{
		MinVersion:             tls.VersionTLS13,
		SessionTicketsDisabled: true,
		InsecureSkipVerify:     true, // names are SPIFFE IDs: VerifyConnection does all of it
		VerifyConnection: func(state tls.ConnectionState) error {
			if len(state.PeerCertificates) == 0 || len(state.PeerCertificates) > maxChain {
				return fault.New(fault.Denied, "the server showed %d certificates", len(state.PeerCertificates))
			}
			roots := l.roots()
			learned := false
			if len(roots) == 0 {
				var err error
				if roots, err = rootsByHash(state.PeerCertificates, l.p.BundleHash); err != nil {
					return err
				}
				learned = true
			}
			chain := make([][]byte, len(state.PeerCertificates))
			for i, c := range state.PeerCertificates {
				chain[i] = c.Raw
			}
			_, got, err := l.verifyChain(chain, roots, usageServer)
			if err != nil {
				return err
			}
			if want := attestnode.ServerID(l.p.TrustDomain); got != want {
				return fault.New(fault.Denied, "the server is %s, not %s", got, want)
			}
			if learned {
				l.pinned.learn(roots)
			}
			return nil
		},
	}
	if id != nil {
		config.Certificates = []tls.Certificate{*id.TLS()}
	}
	return config
}

const maxChain = 16

type usage = chaincheck.Usage

const (
	usageClient = chaincheck.Client
	usageServer = chaincheck.Server
)

// verifyChain verifies a chain under roots of our trust domain. The server's
// is also checked against the CRLs we hold; our own is the server's to judge.
func (l *Link) verifyChain(chain [][]byte, roots []*x509.Certificate, use usage) ([]*x509.Certificate, spiffeid.ID, error) {
	p := chaincheck.Params{
		Roots: chaincheck.Roots{l.p.TrustDomain: roots}, Usage: use, Revocation: chaincheck.Off, Now: l.p.Clock.Now(),
	}
	if use == usageServer {
		p.CRLs, p.Revocation = crlSet(l.view.Get()), chaincheck.Prefer
	}
	res, err := chaincheck.VerifyLeafRaw(chain, p)
	if err != nil {
		return nil, spiffeid.ID{}, fault.New(fault.Denied, "%w", err)
	}
	certs, err := parseCerts(chain)
	if err != nil {
		return nil, spiffeid.ID{}, fault.New(fault.Invalid, "chain: %w", err)
	}
	return certs, res.ID, nil
}

// crlSet is every CRL of a view; nil when there is none.
func crlSet(v *View) *chaincheck.CRLSet {
	var lists [][]byte
	for _, crl := range v.CRLs {
		lists = append(lists, crl.GetLists()...)
	}
	if len(lists) == 0 {
		return nil
	}
	set, _ := chaincheck.NewCRLSet(lists) // what it leaves out was refused on arrival
	return set
}
