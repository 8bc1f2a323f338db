package mtls

import (
	"fmt"
	"regexp"
	"strings"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// maxPattern bounds a pattern's characters.
const maxPattern = 1024

// pattern matches paths of SPIFFE IDs. Go's regular expressions take linear
// time; every character that is not a star is quoted.
type pattern struct {
	prefix string // what every match starts with; often enough to refuse
	full   *regexp.Regexp
}

func compilePattern(s string) (*pattern, error) {
	if len(s) > maxPattern {
		return nil, fmt.Errorf("the pattern %.32q… has %d characters, at most %d are taken", s, len(s), maxPattern)
	}
	segments, ok := strings.CutPrefix(s, "/")
	if !ok {
		return nil, fmt.Errorf("the pattern %q does not start with /; it is matched with the path of a SPIFFE ID, e.g. /ns/*/sa/model-*", s)
	}
	expr := strings.Builder{}
	expr.WriteString(`\A`)
	for segment := range strings.SplitSeq(segments, "/") {
		if segment == "**" {
			expr.WriteString(`(?:/[^/]+)*`)
			continue
		}
		// A star may stand for a letter here: what is left must be a segment.
		if err := spiffeid.ValidatePathSegment(strings.ReplaceAll(segment, "*", "x")); err != nil || strings.Contains(segment, "**") {
			if err == nil {
				err = fmt.Errorf("** must be a whole segment")
			}
			return nil, fmt.Errorf("the pattern %q matches no SPIFFE ID: segment %q: %w", s, segment, err)
		}
		if segment == "*" {
			expr.WriteString(`/[^/]+`)
			continue
		}
		expr.WriteString("/")
		for n, literal := range strings.Split(segment, "*") {
			if n > 0 {
				expr.WriteString(`[^/]*`)
			}
			expr.WriteString(regexp.QuoteMeta(literal))
		}
	}
	expr.WriteString(`\z`)
	full, err := regexp.Compile(expr.String())
	if err != nil {
		return nil, fmt.Errorf("the pattern %q: %w", s, err)
	}
	prefix, _, _ := strings.Cut(s, "*")
	if strings.Contains(s, "**") {
		// "/a/**" also matches "/a".
		prefix = strings.TrimSuffix(prefix, "/")
	}
	return &pattern{prefix: prefix, full: full}, nil
}

func (p *pattern) match(path string) bool {
	return strings.HasPrefix(path, p.prefix) && p.full.MatchString(path)
}
