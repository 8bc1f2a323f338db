package chaincheck

import (
	"crypto/x509"
	"net/netip"
	"strings"

	"golang.org/x/crypto/cryptobyte"
	casn1 "golang.org/x/crypto/cryptobyte/asn1"
)

// nameKind is the tag of a GeneralName (RFC 5280 4.2.1.6).
type nameKind uint8

const (
	nameOther     nameKind = 0
	nameEmail     nameKind = 1
	nameDNS       nameKind = 2
	nameX400      nameKind = 3
	nameDirectory nameKind = 4
	nameEDI       nameKind = 5
	nameURI       nameKind = 6
	nameIP        nameKind = 7
	nameRID       nameKind = 8
)

var kindNames = [...]string{"otherName", "e-mail", "DNS", "x400Address", "directory", "ediPartyName", "URI", "IP", "registeredID"}

func (k nameKind) String() string { return kindNames[k] }

// constructed tells how the kind is encoded.
func (k nameKind) constructed() bool {
	return k == nameOther || k == nameX400 || k == nameDirectory || k == nameEDI
}

// name is one GeneralName: its contents, uninterpreted.
type name struct {
	kind  nameKind
	value []byte
}

// maxNames bounds the names of one certificate.
const maxNames = 512

// readName reads the next GeneralName.
func readName(s *cryptobyte.String) (name, bool) {
	var value cryptobyte.String
	var tag casn1.Tag
	if !s.ReadAnyASN1(&value, &tag) || tag&0xc0 != 0x80 {
		return name{}, false
	}
	kind := nameKind(tag & 0x1f)
	if kind > nameRID || kind.constructed() != (tag&0x20 != 0) {
		return name{}, false
	}
	return name{kind, value}, true
}

// parseNames reads a subject alternative name extension and refuses names
// that are not what their type says, so that no type passes for another.
func parseNames(cert *x509.Certificate, der []byte) ([]name, *Error) {
	input := cryptobyte.String(der)
	var seq cryptobyte.String
	if !input.ReadASN1(&seq, casn1.SEQUENCE) || !input.Empty() || seq.Empty() {
		return nil, refuse(Malformed, cert, "its subject alternative name does not parse")
	}
	names := make([]name, 0, 4)
	for !seq.Empty() {
		n, ok := readName(&seq)
		if !ok {
			return nil, refuse(Malformed, cert, "its subject alternative name does not parse")
		}
		if len(names) == maxNames {
			return nil, refuse(TooComplex, cert, "it has more than %d names", maxNames)
		}
		if !n.valid() {
			return nil, refuse(Malformed, cert, "%.256q is not a valid %s name", n.value, n.kind)
		}
		names = append(names, n)
	}
	return names, nil
}

func (n name) valid() bool {
	switch n.kind {
	case nameDNS:
		return validDNS(string(n.value), true)
	case nameEmail:
		local, host, ok := cutMailbox(string(n.value))
		return ok && local != "" && validDNS(host, false)
	case nameURI:
		return validURI(n.value)
	case nameIP:
		return len(n.value) == 4 || len(n.value) == 16
	}
	return len(n.value) > 0
}

// validDNS: RFC 5280 4.2.1.6 (preferred name syntax), RFC 9525 6.3 (a
// wildcard is the whole leftmost label). What looks like an IPv4 address is
// no DNS name.
func validDNS(s string, wildcard bool) bool {
	if wildcard {
		s = strings.TrimPrefix(s, "*.")
	}
	if s == "" || len(s) > 253 {
		return false
	}
	var label string
	for rest, more := s, true; more; {
		label, rest, more = strings.Cut(rest, ".")
		if label == "" || len(label) > 63 || label[0] == '-' || label[len(label)-1] == '-' {
			return false
		}
		for i := range len(label) {
			if c := label[i]; !letterOrDigit(c) && c != '-' {
				return false
			}
		}
	}
	return strings.Trim(label, "0123456789") != ""
}

func letterOrDigit(c byte) bool {
	return 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9'
}

// validURI: printable ASCII with a scheme; the SPIFFE ID has its own, much
// stricter parser.
func validURI(v []byte) bool {
	colon := false
	for i, c := range v {
		if c <= ' ' || c >= 0x7f {
			return false
		}
		colon = colon || i > 0 && c == ':'
	}
	return colon
}

// cutMailbox splits local@host; quoted local parts are not supported.
func cutMailbox(s string) (local, host string, ok bool) {
	at := strings.LastIndexByte(s, '@')
	if at < 0 {
		return "", "", false
	}
	local, host = s[:at], s[at+1:]
	for i := range len(local) {
		if c := local[i]; c <= ' ' || c >= 0x7f || strings.IndexByte(`"\@,;:<>[]()`, c) >= 0 {
			return "", "", false
		}
	}
	return local, host, true
}

// uriHost returns the lower-case host that a URI constraint speaks of. RFC
// 5280 4.2.1.10: a URI without a host name, or with an IP address (with or
// without a zone), satisfies no constraint. Spellings that parsers disagree
// on (percent signs, user information, trailing dots) have no host here.
func uriHost(uri string) (string, bool) {
	_, rest, ok := strings.Cut(uri, "://")
	if !ok {
		return "", false
	}
	if end := strings.IndexAny(rest, "/?#"); end >= 0 {
		rest = rest[:end]
	}
	host, port, hasPort := strings.Cut(rest, ":")
	if hasPort && strings.Trim(port, "0123456789") != "" {
		return "", false
	}
	if !validHost(host) {
		return "", false
	}
	return strings.ToLower(host), true
}

// validHost is a host name, or a trust domain, which may have underscores.
func validHost(host string) bool {
	if host == "" || len(host) > 255 || host[0] == '.' || host[len(host)-1] == '.' || strings.Contains(host, "..") {
		return false
	}
	for i := range len(host) {
		if c := host[i]; !letterOrDigit(c) && c != '-' && c != '.' && c != '_' {
			return false
		}
	}
	_, err := netip.ParseAddr(host)
	return err != nil
}
