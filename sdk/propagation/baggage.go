package propagation

import (
	"fmt"
	"net/url"
	"slices"
	"strings"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// Members of W3C Baggage that are ours. They are for logs and traces: nothing
// is decided by them.
const (
	BaggageOrigin = "workload.origin"
	BaggageCaller = "workload.caller"
)

// Limits of W3C Baggage 3.3.2.
const (
	maxBaggageBytes   = 8192
	maxBaggageMembers = 64
)

// member is one list-member of W3C Baggage 3.3.1.
type member struct {
	key, value string // value as it stands, percent-encoded
	rest       string // properties, from ";" on
}

func (m member) String() string { return m.key + "=" + m.value + m.rest }

// parseBaggage reads all values of the header, which may be repeated.
func parseBaggage(values []string) ([]member, error) {
	size := 0
	for _, v := range values {
		size += len(v) + 1
	}
	if size > maxBaggageBytes+1 {
		return nil, fmt.Errorf("baggage of %d bytes, more than %d", size, maxBaggageBytes)
	}
	var members []member
	for _, v := range values {
		for one := range strings.SplitSeq(v, ",") {
			if one = strings.Trim(one, " \t"); one == "" {
				continue
			}
			m, err := parseMember(one)
			if err != nil {
				return nil, err
			}
			if members = append(members, m); len(members) > maxBaggageMembers {
				return nil, fmt.Errorf("more than %d members", maxBaggageMembers)
			}
		}
	}
	return members, nil
}

func parseMember(one string) (member, error) {
	pair, rest, properties := strings.Cut(one, ";")
	key, value, ok := strings.Cut(pair, "=")
	m := member{key: strings.Trim(key, " \t"), value: strings.Trim(value, " \t")}
	if !ok || !isToken(m.key) {
		return member{}, fmt.Errorf("a member without a key")
	}
	if !isBaggageValue(m.value) {
		return member{}, fmt.Errorf("the value of %.64q has a character that is not allowed", m.key)
	}
	if properties {
		for p := range strings.SplitSeq(rest, ";") {
			k, v, hasValue := strings.Cut(p, "=")
			k, v = strings.Trim(k, " \t"), strings.Trim(v, " \t")
			if !isToken(k) || !isBaggageValue(v) {
				return member{}, fmt.Errorf("a property of %.64q is malformed", m.key)
			}
			m.rest += ";" + k
			if hasValue {
				m.rest += "=" + v
			}
		}
	}
	return m, nil
}

// isToken is RFC 9110 5.6.2.
func isToken(s string) bool {
	for i := range len(s) {
		c := s[i]
		if c <= ' ' || c >= 0x7f || strings.IndexByte("\"(),/:;<=>?@[\\]{}", c) >= 0 {
			return false
		}
	}
	return s != ""
}

// isBaggageValue is baggage-octet: printable ASCII without space, quote,
// comma, semicolon and backslash.
func isBaggageValue(s string) bool {
	for i := range len(s) {
		c := s[i]
		if c <= ' ' || c >= 0x7f || c == '"' || c == ',' || c == ';' || c == '\\' {
			return false
		}
	}
	return true
}

func ours(key string) bool { return key == BaggageOrigin || key == BaggageCaller }

func encode(id spiffeid.ID) string { return url.PathEscape(id.String()) }

func says(m member, id spiffeid.ID) bool {
	value, err := url.PathUnescape(m.value)
	return err == nil && !id.IsZero() && value == id.String() && m.rest == ""
}

// baggageIn is what of the baggage a program sees: in the mesh everything that
// is well-formed, members of ours where they are true; from outside what the
// configuration names. Changed is false where values can stay as they are.
func (in *Inbound) baggageIn(values []string, c Chain) (out string, changed bool) {
	if len(values) == 0 {
		return "", false
	}
	members, err := parseBaggage(values)
	if err != nil {
		in.metrics.request("baggage_dropped")
		in.config.Logger.Debug("baggage is dropped", "error", err)
		return "", true
	}
	kept := members[:0:0]
	for _, m := range members {
		switch {
		case in.config.Mode == Edge && (ours(m.key) || !slices.Contains(in.config.BaggageFromOutside, m.key)):
		case m.key == BaggageOrigin && !says(m, c.Origin()):
		case m.key == BaggageCaller && !says(m, c.Caller()):
		default:
			kept = append(kept, m)
		}
	}
	if len(kept) == len(members) {
		return "", false
	}
	return join(kept), true
}

// Baggage is Accept for the baggage that came with a request: the values that
// a program may see, nil for none.
func (in *Inbound) Baggage(values []string, c Chain) []string {
	out, changed := in.baggageIn(values, c)
	switch {
	case !changed:
		return values
	case out == "":
		return nil
	}
	return []string{out}
}

// baggageOut is the program's own baggage with the members of ours set anew;
// origin is zero for calls to the outside.
func baggageOut(values []string, origin, self spiffeid.ID) string {
	members, err := parseBaggage(values)
	if err != nil {
		members = nil // W3C Baggage 3.3: what is malformed is not passed on
	}
	members = slices.DeleteFunc(members, func(m member) bool { return ours(m.key) })
	plain := join(members)
	if origin.IsZero() || self.IsZero() || len(members) > maxBaggageMembers-2 {
		return plain
	}
	members = append(members, member{key: BaggageOrigin, value: encode(origin)}, member{key: BaggageCaller, value: encode(self)})
	if all := join(members); len(all) <= maxBaggageBytes {
		return all
	}
	return plain
}

func join(members []member) string {
	all := make([]string, len(members))
	for i, m := range members {
		all[i] = m.String()
	}
	return strings.Join(all, ",")
}
