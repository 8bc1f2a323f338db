package handshake

import "strings"

// linePrefix is how net/http starts the line of a failed handshake.
const linePrefix = "http: TLS handshake error from "

// parseLine takes such a line apart. The address has no ": " in it, whatever
// its family; all that follows is the reason.
func parseLine(line string) (remote, reason string, ok bool) {
	line, ok = strings.CutPrefix(strings.TrimRight(line, "\n"), linePrefix)
	if !ok {
		return "", "", false
	}
	return strings.Cut(line, ": ")
}

// classifyText finds the cause where only the error's text is left.
func (e *Error) classifyText(text string) {
	if _, rest, ok := strings.Cut(text, " failed ("); ok && strings.HasPrefix(text, "TLS handshake") {
		if e.named(rest) {
			return
		}
	}
	if rest, ok := strings.CutPrefix(text, "chain refused ("); ok && e.named(rest) {
		e.Whose = Peer
		return
	}
	if rest, ok := strings.CutPrefix(text, "remote error: "); ok {
		if alert, ok := alertByText(rest); ok {
			e.classify(alertError(alert))
			return
		}
	}
	text = strings.TrimPrefix(text, "tls: failed to verify certificate: ")
	for _, t := range typedTexts {
		if strings.HasPrefix(text, t.start) && (t.part == "" || strings.Contains(text, t.part)) {
			e.Cause, e.Whose, e.LooksLike = t.cause, t.whose, t.looksLike
			return
		}
	}
	if !strings.HasPrefix(text, "tls: ") {
		for _, t := range networkTexts {
			if strings.HasSuffix(text, t.end) {
				e.Cause = t.cause
				return
			}
		}
	}
	e.Cause, e.Whose = byText(text)
}

// named reads "cause): …".
func (e *Error) named(rest string) bool {
	name, _, _ := strings.Cut(rest, ")")
	if !known[Cause(name)] {
		return false
	}
	e.Cause = Cause(name)
	return true
}

// typedTexts are errors that have a type, as they print.
var typedTexts = []struct {
	start, part string
	cause       Cause
	whose       string
	looksLike   string
}{
	{"no identity yet", "", NotReady, Own, ""},
	{"x509: certificate signed by unknown authority", "", UnknownCA, Peer, ""},
	{"x509: certificate has expired or is not yet valid", " is before ", NotYetValid, Peer, ""},
	{"x509: certificate has expired or is not yet valid", "", Expired, Peer, ""},
	{"x509: certificate is valid for ", "", WrongName, Peer, ""},
	{"x509: certificate is not valid for any names", "", WrongName, Peer, ""},
	{"x509: cannot validate certificate for ", "", WrongName, Peer, ""},
	{"x509: certificate specifies an incompatible key usage", "", BadUsage, Peer, ""},
	{"x509: certificate is not authorized to sign", "", BadUsage, Peer, ""},
	{"x509: cannot verify signature: insecure algorithm", "", WeakKey, Peer, ""},
	{"x509: issuer has ", "", TooComplex, Peer, ""},
	{"x509: issuer name does not match", "", UnknownCA, Peer, ""},
	{"x509: failed to load system roots", "", UnknownCA, Peer, ""},
	{"x509: ", "", Constraint, Peer, ""},
	{"tls: first record does not look like a TLS handshake", "", NotTLS, "", ""},
	{"client sent an HTTP request to an HTTPS server", "", NotTLS, "", "HTTP without TLS"},
	{"tls: unsupported SSLv2 handshake received", "", ProtocolVersion, "", ""},
	{"local error: tls: ", "", Protocol, "", ""},
}

// networkTexts are how errors of the network end.
var networkTexts = []struct {
	end   string
	cause Cause
}{
	{"i/o timeout", Timeout}, {"context deadline exceeded", Timeout}, {"deadline exceeded", Timeout},
	{"context canceled", Canceled}, {"use of closed network connection", Canceled},
	{"EOF", Closed}, {"connection reset by peer", Closed}, {"broken pipe", Closed}, {"closed pipe", Closed},
	{"software caused connection abort", Closed}, {"not connected", Closed},
}
