package chaincheck

import (
	"bytes"
	"crypto/x509"
	"encoding/asn1"
	"strings"

	"golang.org/x/crypto/cryptobyte"
	casn1 "golang.org/x/crypto/cryptobyte/asn1"
)

// constraints are a CA's name constraints (RFC 5280 4.2.1.10).
type constraints struct {
	permitted, excluded []subtree
}

// subtree is one constraint; which fields are set depends on kind.
type subtree struct {
	kind nameKind
	text string // DNS, e-mail host and URI: lower case; mailbox: local part as is
	addr []byte // IP: address and mask
	dn   []rdn  // directory name
}

func parseConstraints(cert *x509.Certificate, der []byte) (*constraints, *Error) {
	input := cryptobyte.String(der)
	var seq, permitted, excluded cryptobyte.String
	var hasPermitted, hasExcluded bool
	tag := func(n uint8) casn1.Tag { return casn1.Tag(n).ContextSpecific().Constructed() }
	if !input.ReadASN1(&seq, casn1.SEQUENCE) || !input.Empty() ||
		!seq.ReadOptionalASN1(&permitted, &hasPermitted, tag(0)) ||
		!seq.ReadOptionalASN1(&excluded, &hasExcluded, tag(1)) ||
		!seq.Empty() || !hasPermitted && !hasExcluded ||
		hasPermitted && permitted.Empty() || hasExcluded && excluded.Empty() {
		return nil, refuse(Malformed, cert, "its name constraints do not parse")
	}
	c := &constraints{}
	var err *Error
	if c.permitted, err = parseSubtrees(cert, permitted); err != nil {
		return nil, err
	}
	if c.excluded, err = parseSubtrees(cert, excluded); err != nil {
		return nil, err
	}
	return c, nil
}

// maxSubtrees bounds the constraints of one CA, permitted or excluded.
const maxSubtrees = 1024

func parseSubtrees(cert *x509.Certificate, s cryptobyte.String) ([]subtree, *Error) {
	var trees []subtree
	for !s.Empty() {
		var entry cryptobyte.String
		if !s.ReadASN1(&entry, casn1.SEQUENCE) {
			return nil, refuse(Malformed, cert, "its name constraints do not parse")
		}
		base, ok := readName(&entry)
		// minimum is always 0 and maximum absent, so DER has neither.
		if !ok || !entry.Empty() {
			return nil, refuse(Malformed, cert, "its name constraints do not parse")
		}
		tree, ok := newSubtree(base)
		if !ok {
			return nil, refuse(Malformed, cert, "%.256q is not a valid name constraint for %s names", base.value, base.kind)
		}
		if len(trees) == maxSubtrees {
			return nil, refuse(TooComplex, cert, "it has more than %d name constraints", maxSubtrees)
		}
		trees = append(trees, tree)
	}
	return trees, nil
}

func newSubtree(base name) (subtree, bool) {
	t := subtree{kind: base.kind, text: string(base.value)}
	switch base.kind {
	case nameDNS:
		t.text = strings.ToLower(t.text)
		return t, t.text == "" || validDNS(t.text, false)
	case nameURI:
		t.text = strings.ToLower(t.text)
		return t, t.text == "" || validHost(strings.TrimPrefix(t.text, "."))
	case nameEmail:
		if strings.Contains(t.text, "@") {
			local, host, ok := cutMailbox(t.text)
			t.text = local + "@" + strings.ToLower(host)
			return t, ok && local != "" && validDNS(host, false)
		}
		t.text = strings.ToLower(t.text)
		return t, t.text == "" || validDNS(strings.TrimPrefix(t.text, "."), false)
	case nameIP:
		t.addr = base.value
		return t, (len(t.addr) == 8 || len(t.addr) == 32) && contiguous(t.addr[len(t.addr)/2:])
	case nameDirectory:
		dn, ok := parseDN(base.value)
		t.dn = dn
		return t, ok
	}
	// Kinds that cannot be compared: no certificate below may have one.
	return t, true
}

// contiguous reports whether a mask is ones followed by zeros.
func contiguous(mask []byte) bool {
	ended := false
	for _, b := range mask {
		for bit := 7; bit >= 0; bit-- {
			one := b>>bit&1 == 1
			if one && ended {
				return false
			}
			ended = ended || !one
		}
	}
	return true
}

var oidEmailAddress = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 9, 1}

// check refuses a certificate below the CA that has a name outside its
// constraints. Every comparison counts as work.
func (c *constraints) check(ca, below *facts, w *Work) *Error {
	for _, n := range below.names {
		if err := c.checkName(ca, below, n, w); err != nil {
			return err
		}
	}
	if c.speaksOf(nameDirectory) && len(below.cert.RawSubject) > 2 {
		if err := c.checkName(ca, below, name{nameDirectory, below.cert.RawSubject}, w); err != nil {
			return err
		}
	}
	if c.speaksOf(nameEmail) {
		for _, attribute := range below.cert.Subject.Names {
			if !attribute.Type.Equal(oidEmailAddress) {
				continue
			}
			value, _ := attribute.Value.(string)
			n := name{nameEmail, []byte(value)}
			if !n.valid() {
				return refuse(Constraint, below.cert, "its subject has an e-mail address that cannot be held against the name constraints of %s", describe(ca.cert))
			}
			if err := c.checkName(ca, below, n, w); err != nil {
				return err
			}
		}
	}
	return nil
}

func (c *constraints) speaksOf(kind nameKind) bool {
	for _, trees := range [][]subtree{c.permitted, c.excluded} {
		for i := range trees {
			if trees[i].kind == kind {
				return true
			}
		}
	}
	return false
}

func (c *constraints) checkName(ca, below *facts, n name, w *Work) *Error {
	if !c.speaksOf(n.kind) {
		return nil
	}
	p, ok := prepare(n)
	if !ok {
		return refuse(Constraint, below.cert, "its %s name %.256q cannot be held against the name constraints of %s", n.kind, n.value, describe(ca.cert))
	}
	for i := range c.excluded {
		t := &c.excluded[i]
		if w.Comparisons++; w.Comparisons > maxComparisons {
			return refuse(TooComplex, below.cert, "comparing its names with name constraints takes more than %d steps", maxComparisons)
		}
		if t.kind == n.kind && t.excludes(&p) {
			return refuse(Constraint, below.cert, "its %s name %.256q is excluded by the name constraints of %s", n.kind, n.value, describe(ca.cert))
		}
	}
	constrained := false
	for i := range c.permitted {
		t := &c.permitted[i]
		if w.Comparisons++; w.Comparisons > maxComparisons {
			return refuse(TooComplex, below.cert, "comparing its names with name constraints takes more than %d steps", maxComparisons)
		}
		if t.kind != n.kind {
			continue
		}
		constrained = true
		if t.contains(&p) {
			return nil
		}
	}
	if constrained {
		return refuse(Constraint, below.cert, "its %s name %.256q is not permitted by the name constraints of %s", n.kind, n.value, describe(ca.cert))
	}
	return nil
}

// prepared is a name in the form that subtrees are compared with.
type prepared struct {
	text string
	host string // e-mail
	addr []byte
	dn   []rdn
}

// prepare returns false for names that cannot be compared safely.
func prepare(n name) (prepared, bool) {
	switch n.kind {
	case nameDNS:
		return prepared{text: strings.ToLower(string(n.value))}, true
	case nameURI:
		host, ok := uriHost(string(n.value))
		return prepared{text: host}, ok
	case nameEmail:
		local, host, ok := cutMailbox(string(n.value))
		host = strings.ToLower(host)
		return prepared{text: local + "@" + host, host: host}, ok
	case nameIP:
		// An IPv4 address in an IPv6 name would slip past IPv4 constraints.
		mapped := len(n.value) == 16 && bytes.HasPrefix(n.value, []byte{0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff})
		return prepared{addr: n.value}, !mapped
	case nameDirectory:
		dn, ok := parseDN(n.value)
		return prepared{dn: dn}, ok
	}
	return prepared{}, false
}

// contains reports whether the name lies in the subtree for certain.
func (t *subtree) contains(p *prepared) bool {
	switch t.kind {
	case nameDNS:
		return t.text == "" || p.text == t.text || strings.HasSuffix(p.text, "."+t.text)
	case nameURI:
		return hostWithin(p.text, t.text)
	case nameEmail:
		if strings.Contains(t.text, "@") {
			return p.text == t.text
		}
		return hostWithin(p.host, t.text)
	case nameIP:
		if len(t.addr) != 2*len(p.addr) {
			return false
		}
		address, mask := t.addr[:len(p.addr)], t.addr[len(p.addr):]
		for i := range p.addr {
			if p.addr[i]&mask[i] != address[i]&mask[i] {
				return false
			}
		}
		return true
	case nameDirectory:
		return dnWithin(p.dn, t.dn)
	}
	return false
}

// hostWithin: ".example.org" holds the names below, "example.org" that one.
func hostWithin(host, constraint string) bool {
	if constraint == "" || constraint[0] == '.' {
		return strings.HasSuffix(host, constraint)
	}
	return host == constraint
}

// excludes reports whether the name may lie in the subtree: a wildcard by any
// name it could stand for, a directory name in any spelling.
func (t *subtree) excludes(p *prepared) bool {
	switch t.kind {
	case nameDNS:
		if rest, wildcard := strings.CutPrefix(p.text, "*"); wildcard && strings.HasSuffix("."+t.text, rest) {
			return true
		}
	case nameDirectory:
		return dnMayBeWithin(p.dn, t.dn)
	}
	return t.contains(p)
}
