package handshake

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"syscall"
	"time"

	"github.com/legation-io/legation/sdk/chaincheck"
	"github.com/legation-io/legation/sdk/identity"
)

// diagnose explains err with what was seen; cs is the connection's state after
// the handshake failed.
func (a *Attempt) diagnose(err error, cs tls.ConnectionState) *Error {
	if e, ok := errors.AsType[*Error](err); ok {
		return e
	}
	if s := a.seen.state; s != nil { // crypto/tls forgets some of it afterwards
		cs = *s
	}
	e := &Error{
		Side: a.side, Remote: a.raw.RemoteAddr(), Local: a.raw.LocalAddr(), Err: err,
		SNI: a.seen.sni, Offered: a.seen.versions, Protocols: a.seen.alpn,
		Version: cs.Version, CipherSuite: cs.CipherSuite, Chain: cs.PeerCertificates,
	}
	if e.SNI == "" {
		e.SNI = cs.ServerName
	}
	if a.side == Client && a.base != nil {
		e.SNI = a.base.ServerName
		e.Offered = offered(a.base)
		e.Protocols = a.base.NextProtos
	}
	if alert, ok := a.tap.plainAlert(err); ok {
		e.classify(alertError(alert))
	} else {
		e.classify(err)
	}
	a.explain(e)
	return e
}

// classify finds the cause by types, and by text where there are none.
func (e *Error) classify(err error) {
	if r, ok := errors.AsType[*Refusal](err); ok && r.Cause != "" && known[r.Cause] {
		e.Cause, e.Whose = r.Cause, r.Whose
		if c, ok := errors.AsType[*chaincheck.Error](err); ok {
			e.Certificate = c.Certificate
		}
		return
	}
	if c, ok := errors.AsType[*chaincheck.Error](err); ok {
		e.Cause, e.Whose, e.Certificate = Cause(c.Cause), Peer, c.Certificate
		if !known[e.Cause] {
			e.Cause = Other
		}
		return
	}
	if _, ok := errors.AsType[*identity.NotReady](err); ok {
		e.Cause, e.Whose = NotReady, Own
		return
	}
	if alert, ok := remoteAlert(err); ok {
		r, ok := refusals[alert]
		if !ok {
			r.cause = Protocol
		}
		e.Alert, e.Cause, e.Hint = alert, r.cause, r.hint
		if r.own {
			e.Whose = Own
		}
		return
	}
	if e.classifyX509(err) || e.classifyRecord(err) || e.classifyNetwork(err) {
		return
	}
	e.Cause, e.Whose = byText(err.Error())
}

// classifyX509: what the standard library's verifier found.
func (e *Error) classifyX509(err error) bool {
	if v, ok := errors.AsType[*tls.CertificateVerificationError](err); ok {
		e.Whose = Peer
		if len(e.Chain) == 0 {
			e.Chain = v.UnverifiedCertificates
		}
		e.Cause = Other
	}
	if u, ok := errors.AsType[x509.UnknownAuthorityError](err); ok {
		e.Cause, e.Certificate = UnknownCA, u.Cert
	} else if h, ok := errors.AsType[x509.HostnameError](err); ok {
		e.Cause, e.Certificate = WrongName, h.Certificate
	} else if i, ok := errors.AsType[x509.CertificateInvalidError](err); ok {
		e.Cause, e.Certificate = invalid(i), i.Cert
	} else if _, ok := errors.AsType[x509.InsecureAlgorithmError](err); ok {
		e.Cause = WeakKey
	} else if _, ok := errors.AsType[x509.UnhandledCriticalExtension](err); ok {
		e.Cause = Constraint
	} else if _, ok := errors.AsType[x509.ConstraintViolationError](err); ok {
		e.Cause = BadUsage
	} else if _, ok := errors.AsType[x509.SystemRootsError](err); ok {
		e.Cause = UnknownCA
	}
	if e.Cause == "" {
		return false
	}
	e.Whose = Peer
	return true
}

func invalid(i x509.CertificateInvalidError) Cause {
	switch i.Reason {
	case x509.Expired:
		// One reason for both ends; the text has the sentence.
		if strings.Contains(i.Detail, " is before ") {
			return NotYetValid
		}
		return Expired
	case x509.NotAuthorizedToSign, x509.IncompatibleUsage:
		return BadUsage
	case x509.TooManyConstraints:
		return TooComplex
	case x509.NameMismatch:
		return UnknownCA
	default:
		return Constraint
	}
}

// classifyRecord: bytes that are no TLS.
func (e *Error) classifyRecord(err error) bool {
	r, ok := errors.AsType[tls.RecordHeaderError](err)
	if !ok {
		return false
	}
	switch {
	case r.RecordHeader[0] == 0x80: // a length with the top bit set, RFC 6101 E
		e.Cause, e.Hint = ProtocolVersion, "the peer speaks SSL 2"
	case r.Conn != nil: // nothing was sent yet: it was the first record
		e.Cause, e.LooksLike = NotTLS, looksLike(r.RecordHeader)
	default:
		e.Cause = Protocol
	}
	return true
}

// classifyNetwork: the connection ended, or somebody's patience.
func (e *Error) classifyNetwork(err error) bool {
	if n, ok := errors.AsType[net.Error](err); ok && n.Timeout() ||
		errors.Is(err, context.DeadlineExceeded) || errors.Is(err, os.ErrDeadlineExceeded) {
		e.Cause = Timeout
		return true
	}
	for _, c := range []struct {
		err   error
		cause Cause
	}{
		{context.Canceled, Canceled}, {net.ErrClosed, Canceled},
		{io.EOF, Closed}, {io.ErrUnexpectedEOF, Closed}, {io.ErrClosedPipe, Closed},
		{syscall.ECONNRESET, Closed}, {syscall.EPIPE, Closed}, {syscall.ECONNABORTED, Closed}, {syscall.ENOTCONN, Closed},
	} {
		if errors.Is(err, c.err) {
			e.Cause = c.cause
			return true
		}
	}
	if op, ok := errors.AsType[*net.OpError](err); ok && op.Op == "local error" {
		e.Cause = Protocol
		return true
	}
	return false
}

// explain adds whose certificate it was, the anchors and what is likely.
func (a *Attempt) explain(e *Error) {
	if r, ok := errors.AsType[*Refusal](e.Err); ok && len(r.Roots) > 0 {
		e.Anchor = anchors(r.Roots, e.Chain)
	} else if e.Whose == Peer && a.base != nil {
		pool := a.base.RootCAs
		if a.side == Server {
			pool = a.base.ClientCAs
		}
		if pool != nil {
			//lint:ignore SA1019 only system pools lack subjects, and they are not named
			e.Anchor = rawNames(pool.Subjects())
		}
	}
	if e.Whose == Peer && e.Certificate == nil && len(e.Chain) > 0 {
		e.Certificate = e.Chain[0]
	}
	switch e.Cause {
	case Closed, Timeout:
		e.Hint = a.progress(e)
	case Canceled:
		e.Hint = "this side gave up; " + a.progress(e)
	}
	if e.Alert != 0 {
		a.explainAlert(e)
	}
}

// progress says how far a handshake came that ended without a word.
func (a *Attempt) progress(e *Error) string {
	switch {
	case len(e.Chain) > 0:
		return "the peer's certificate had come; it may have refused ours without saying so"
	case a.side == Server && a.seen.hello:
		return "the client's hello had come, and nothing after it; it may have refused our certificate without saying so"
	case a.side == Server:
		return "the client had said nothing: a port scan, a health check by TCP, or a connection that is opened ahead"
	case e.Version != 0:
		return "the server had answered and not completed the handshake"
	default:
		return "the server had answered nothing: it may speak another protocol, or want another server name"
	}
}

// explainAlert looks at our own side for why the peer refused.
func (a *Attempt) explainAlert(e *Error) {
	if a.side == Client && len(a.seen.anchors) > 0 {
		e.Anchor = rawNames(a.seen.anchors)
	}
	own := a.own()
	// Before TLS 1.3 there is no alert for a missing certificate.
	if e.Alert == 40 && a.seen.asked && own == nil {
		e.Cause, e.Whose, e.Hint = NoCertificate, Own, "the peer asked for a client certificate, and none was sent"
	}
	if e.Whose != Own {
		return
	}
	if own == nil {
		if a.side == Client && (e.Cause == Rejected || e.Cause == UnknownCA) {
			e.Hint = "no certificate was sent; " + e.Hint
		}
		return
	}
	e.Certificate = own
	sentence := "ours is " + certificateName(own) + ", valid until " + own.NotAfter.UTC().Format(time.RFC3339)
	switch now := time.Now(); {
	case now.After(own.NotAfter):
		sentence = "ours, " + certificateName(own) + ", expired " + own.NotAfter.UTC().Format(time.RFC3339)
		if e.Cause == Rejected {
			e.Cause, e.Hint = Expired, ""
		}
	case now.Before(own.NotBefore):
		sentence = "ours, " + certificateName(own) + ", is valid only from " + own.NotBefore.UTC().Format(time.RFC3339)
		if e.Cause == Rejected || e.Cause == Expired {
			e.Cause, e.Hint = NotYetValid, ""
		}
	case e.Cause == UnknownCA && e.Anchor != "":
		sentence += ", issued by " + quote(own.Issuer.String(), maxName) + ", and the peer accepts " + e.Anchor
	case e.Cause == UnknownCA:
		sentence += ", issued by " + quote(own.Issuer.String(), maxName)
	}
	if e.Hint != "" {
		sentence += "; " + e.Hint
	}
	e.Hint = sentence
}

// own is the leaf that this side presented; nil when it presented none.
func (a *Attempt) own() *x509.Certificate {
	c := a.seen.own
	if c == nil && a.side == Server && a.base != nil && len(a.base.Certificates) > 0 {
		c = &a.base.Certificates[0]
	}
	if c == nil || len(c.Certificate) == 0 {
		return nil
	}
	if c.Leaf != nil {
		return c.Leaf
	}
	leaf, err := x509.ParseCertificate(c.Certificate[0])
	if err != nil {
		return nil
	}
	return leaf
}

// offered are the versions that a client with this configuration offers.
func offered(c *tls.Config) []uint16 {
	var versions []uint16
	low, high := c.MinVersion, c.MaxVersion
	if low == 0 {
		low = tls.VersionTLS12
	}
	if high == 0 {
		high = tls.VersionTLS13
	}
	for v := high; v >= low && v >= tls.VersionTLS10; v-- {
		versions = append(versions, v)
	}
	return versions
}

// anchors names the roots of the chain's trust domain, or the domains there
// are.
func anchors(roots chaincheck.Roots, chain []*x509.Certificate) string {
	if len(chain) > 0 && len(chain[0].URIs) == 1 {
		for domain, certs := range roots {
			if domain.Name() == chain[0].URIs[0].Host {
				names := make([][]byte, 0, len(certs))
				for _, c := range certs {
					names = append(names, c.RawSubject)
				}
				return fmt.Sprintf("%d roots of %s: %s", len(certs), domain, rawNames(names))
			}
		}
	}
	var domains []string
	for domain := range roots {
		domains = append(domains, domain.Name())
	}
	return listNames(domains, "roots of ")
}
