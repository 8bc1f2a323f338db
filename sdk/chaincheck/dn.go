package chaincheck

import (
	"slices"
	"strings"

	"golang.org/x/crypto/cryptobyte"
	casn1 "golang.org/x/crypto/cryptobyte/asn1"
)

// rdn is one relative distinguished name in a canonical spelling: RFC 5280
// 7.1 without Unicode preparation. opaque marks values whose other spellings
// are not known here (non-ASCII, unusual string types).
type rdn struct {
	text   string
	opaque bool
}

const maxRDNs = 64

// parseDN reads a Name.
func parseDN(der []byte) ([]rdn, bool) {
	input := cryptobyte.String(der)
	var seq cryptobyte.String
	if !input.ReadASN1(&seq, casn1.SEQUENCE) || !input.Empty() {
		return nil, false
	}
	var dn []rdn
	for !seq.Empty() {
		var set cryptobyte.String
		if !seq.ReadASN1(&set, casn1.SET) || set.Empty() || len(dn) == maxRDNs {
			return nil, false
		}
		var r rdn
		var attributes []string
		for !set.Empty() {
			var attribute, oid, value cryptobyte.String
			var tag casn1.Tag
			if !set.ReadASN1(&attribute, casn1.SEQUENCE) || !attribute.ReadASN1(&oid, casn1.OBJECT_IDENTIFIER) ||
				!attribute.ReadAnyASN1(&value, &tag) || !attribute.Empty() {
				return nil, false
			}
			text, known := fold(tag, value)
			r.opaque = r.opaque || !known
			attributes = append(attributes, string(oid)+"="+text)
		}
		slices.Sort(attributes)
		r.text = strings.Join(attributes, "\x00")
		dn = append(dn, r)
	}
	return dn, true
}

// fold makes ASCII strings of all types comparable: case and repeated,
// leading and trailing spaces do not count.
func fold(tag casn1.Tag, value []byte) (string, bool) {
	switch tag {
	case casn1.UTF8String, casn1.PrintableString, casn1.IA5String, casn1.T61String, casn1.Tag(26), casn1.Tag(18):
		for _, c := range value {
			if c < ' ' || c >= 0x7f {
				return string(tag) + string(value), false
			}
		}
		return strings.ToLower(strings.Join(strings.Fields(string(value)), " ")), true
	}
	return string(tag) + string(value), false
}

func dnWithin(dn, tree []rdn) bool {
	return len(dn) >= len(tree) && slices.EqualFunc(dn[:len(tree)], tree, func(a, b rdn) bool { return a.text == b.text })
}

// dnMayBeWithin treats what cannot be compared as equal.
func dnMayBeWithin(dn, tree []rdn) bool {
	return len(dn) >= len(tree) && slices.EqualFunc(dn[:len(tree)], tree, func(a, b rdn) bool {
		return a.opaque || b.opaque || a.text == b.text
	})
}
