package handshake

import (
	"crypto/tls"
	"crypto/x509"
	"log/slog"
	"net"
	"strconv"
	"strings"
	"time"
)

// Error is a failed handshake.
type Error struct {
	Cause Cause
	Side  Side
	// Whose certificate is at fault: Peer, Own, or empty when none is.
	Whose string
	// Alert is what the peer ended the handshake with (RFC 8446 6.2); zero when
	// it did not, and this side found the fault.
	Alert tls.AlertError
	// Remote and Local are the connection's ends; nil when not known.
	Remote, Local net.Addr
	// SNI is the server name that was asked for, as the client wrote it: not to
	// be trusted, may be anything. May be empty.
	SNI string
	// Offered are the TLS versions that the client offered, as far as seen.
	Offered []uint16
	// Protocols are the application protocols (ALPN) that the client offered,
	// as far as seen; not to be trusted.
	Protocols []string
	// Version and CipherSuite are what was agreed on; zero before that.
	Version, CipherSuite uint16
	// Chain is what the peer presented, leaf first, as far as seen; nothing of
	// it is verified.
	Chain []*x509.Certificate
	// Certificate is the one at fault; nil when none is or it was not seen.
	Certificate *x509.Certificate
	// Anchor names the trust anchors that were tried, or those that the peer
	// said it accepts when the peer refused; empty when not known.
	Anchor string
	// LooksLike says what a peer that does not speak TLS seems to speak instead,
	// e.g. "HTTP without TLS"; only with NotTLS.
	LooksLike string
	// Hint says what is likely when the error itself does not tell; may be
	// empty.
	Hint string
	// Err is what was found, e.g. a *chaincheck.Error.
	Err error
}

// Error implements error: one line in printable characters, of bounded length,
// that ends with a link to the guide.
func (e *Error) Error() string {
	var b strings.Builder
	b.WriteString("TLS handshake")
	switch {
	case e.Remote == nil:
	case e.Side == Server:
		b.WriteString(" from " + clean(e.Remote.String(), maxName))
	default:
		b.WriteString(" to " + clean(e.Remote.String(), maxName))
	}
	if e.SNI != "" {
		b.WriteString(" for " + quote(e.SNI, maxName))
	}
	b.WriteString(" failed (" + string(e.Cause) + "): " + e.Detail() + "; see " + e.Link())
	return b.String()
}

// Detail is the sentence of the error: what was found and what is likely,
// without where and without the link.
func (e *Error) Detail() string {
	var b strings.Builder
	switch {
	case e.LooksLike != "":
		b.WriteString("the peer does not speak TLS, it looks like " + e.LooksLike)
	case e.Alert != 0:
		b.WriteString("the peer refused with the alert " + alertName(e.Alert))
	case e.Err != nil:
		b.WriteString(clean(e.Err.Error(), maxText))
	}
	if e.Anchor != "" && e.Cause == UnknownCA && e.Alert == 0 {
		b.WriteString("; tried " + e.Anchor)
	}
	if e.Hint != "" {
		b.WriteString("; " + e.Hint)
	}
	return b.String()
}

// Unwrap returns Err.
func (e *Error) Unwrap() error { return e.Err }

// Is lets errors.Is compare by cause: errors.Is(err, &Error{Cause: Revoked}).
func (e *Error) Is(target error) bool {
	t, ok := target.(*Error)
	return ok && t.Cause == e.Cause && t.Err == nil && t.Remote == nil
}

// Timeout reports whether the deadline passed, as net.Error does.
func (e *Error) Timeout() bool { return e.Cause == Timeout }

// Temporary implements net.Error; it is never true.
func (e *Error) Temporary() bool { return false }

// Code is the cause with the type of error before it, for logs and tickets:
// "tls_handshake_failed/expired".
func (e *Error) Code() string { return ErrorType + "/" + string(e.Cause) }

// ErrorType is the error_type label, or the error.type attribute, of every
// failed handshake.
const ErrorType = "tls_handshake_failed"

// Link is where the guide explains the cause.
func (e *Error) Link() string { return e.Cause.Link() }

// RefusedBy is Peer when the other side ended the handshake with an alert, Own
// when this side found the fault.
func (e *Error) RefusedBy() string {
	if e.Alert != 0 {
		return Peer
	}
	return Own
}

// LogValue implements slog.LogValuer: a group of attributes that are safe to
// log. They hold no secret, and what a stranger wrote is printable and cut.
func (e *Error) LogValue() slog.Value {
	attrs := make([]slog.Attr, 0, 20)
	add := func(key, value string) {
		if value != "" {
			attrs = append(attrs, slog.String(key, value))
		}
	}
	add("error_type", ErrorType)
	add("cause", string(e.Cause))
	add("side", string(e.Side))
	add("whose", e.Whose)
	add("refused_by", e.RefusedBy())
	add("detail", e.Detail())
	if e.Alert != 0 {
		add("alert", alertName(e.Alert))
	}
	if e.Remote != nil {
		add("remote", clean(e.Remote.String(), maxName))
	}
	if e.Local != nil {
		add("local", clean(e.Local.String(), maxName))
	}
	add("sni", clean(e.SNI, maxName))
	add("offered", versionNames(e.Offered))
	add("alpn", protocolNames(e.Protocols))
	if e.Version != 0 {
		add("version", tls.VersionName(e.Version))
	}
	if e.CipherSuite != 0 {
		add("cipher_suite", tls.CipherSuiteName(e.CipherSuite))
	}
	add("chain", chainNames(e.Chain))
	if c := e.Certificate; c != nil {
		add("certificate", certificateName(c))
		add("not_before", c.NotBefore.UTC().Format(time.RFC3339))
		add("not_after", c.NotAfter.UTC().Format(time.RFC3339))
	}
	add("anchor", e.Anchor)
	add("guide", e.Link())
	return slog.GroupValue(attrs...)
}

// How much of what a stranger wrote is repeated, in bytes.
const (
	maxName = 255
	maxText = 1024
	maxList = 8 // elements
)

// clean makes s safe to print on one line: what is not printable is escaped as
// in a Go string, and it is cut to about limit bytes.
func clean(s string, limit int) string {
	if len(s) > limit {
		s = s[:limit] + "…"
	}
	for n := 0; n < len(s); n++ {
		if c := s[n]; c < ' ' || c > '~' {
			return escape(s)
		}
	}
	return s
}

func escape(s string) string {
	var b strings.Builder
	for _, r := range strings.ToValidUTF8(s, "\uFFFD") {
		if r == '"' || r == '\\' || strconv.IsPrint(r) {
			b.WriteRune(r)
			continue
		}
		q := strconv.QuoteRuneToASCII(r)
		b.WriteString(q[1 : len(q)-1])
	}
	return b.String()
}

func quote(s string, limit int) string {
	if len(s) > limit {
		s = s[:limit] + "…"
	}
	return strconv.Quote(strings.ToValidUTF8(s, "\uFFFD"))
}

func certificateName(c *x509.Certificate) string {
	name := ""
	switch {
	case len(c.URIs) > 0:
		name = c.URIs[0].String()
	case len(c.DNSNames) > 0:
		name = c.DNSNames[0]
	default:
		name = c.Subject.String()
	}
	serial := "?"
	if c.SerialNumber != nil {
		serial = c.SerialNumber.Text(16)
	}
	return quote(name, maxName) + " (serial " + clean(serial, 40) + ")"
}

func chainNames(chain []*x509.Certificate) string {
	var b strings.Builder
	for n, c := range chain {
		if n == maxList {
			b.WriteString(", … (" + strconv.Itoa(len(chain)) + " in all)")
			break
		}
		if n > 0 {
			b.WriteString(", ")
		}
		b.WriteString(certificateName(c))
	}
	if len(chain) > 0 {
		last := chain[min(len(chain), maxList)-1]
		b.WriteString(", issued by " + quote(last.Issuer.String(), maxName))
	}
	return b.String()
}

func versionNames(versions []uint16) string {
	var b strings.Builder
	n := 0
	for _, v := range versions {
		if v&0x0f0f == 0x0a0a { // GREASE, RFC 8701
			continue
		}
		if n == maxList {
			b.WriteString(", …")
			break
		}
		if n > 0 {
			b.WriteString(", ")
		}
		b.WriteString(tls.VersionName(v))
		n++
	}
	return b.String()
}

func protocolNames(protocols []string) string {
	var b strings.Builder
	for n, p := range protocols {
		if n == maxList {
			b.WriteString(", …")
			break
		}
		if n > 0 {
			b.WriteString(", ")
		}
		b.WriteString(quote(p, 40))
	}
	return b.String()
}
