// Package configfile reads a program's one YAML configuration file: strictly
// (an unknown key is an error with its line) and with all mistakes reported
// at once.
package configfile

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"reflect"
	"sort"
	"strings"
	"time"

	"github.com/legation-io/legation/internal/fault"
	"go.yaml.in/yaml/v3"
)

// Duration is a Go duration string in YAML, e.g. "1h30m".
type Duration time.Duration

// UnmarshalYAML reads "1h30m".
func (d *Duration) UnmarshalYAML(n *yaml.Node) error {
	var s string
	if err := n.Decode(&s); err != nil {
		return err
	}
	v, err := time.ParseDuration(s)
	if err != nil {
		return &yaml.TypeError{Errors: []string{fmt.Sprintf("line %d: %q is not a duration; write e.g. 90s, 15m or 24h", n.Line, s)}}
	}
	*d = Duration(v)
	return nil
}

// MarshalYAML writes it as read.
func (d Duration) MarshalYAML() (any, error) { return time.Duration(d).String(), nil }

// Problems collects mistakes by the key that was typed.
type Problems struct{ list []string }

// Add notes one mistake.
func (p *Problems) Add(key, format string, args ...any) {
	p.list = append(p.list, key+": "+fmt.Sprintf(format, args...))
}

// Err is nil without problems, else fault.Invalid naming all of them.
func (p *Problems) Err() error {
	if len(p.list) == 0 {
		return nil
	}
	sort.Strings(p.list) // checks look at some keys in no order
	return fault.New(fault.Invalid, "%s", strings.Join(p.list, "\n"))
}

// Load decodes the file at path into out, which holds the defaults. An empty
// path changes nothing.
func Load(path string, out any) error {
	if path == "" {
		return nil
	}
	raw, err := os.ReadFile(path)
	if err != nil {
		return fault.New(fault.Invalid, "read the configuration: %w", err)
	}
	return Parse(path, raw, out)
}

// Parse decodes raw into out; name is used in errors.
func Parse(name string, raw []byte, out any) error {
	dec := yaml.NewDecoder(bytes.NewReader(raw))
	dec.KnownFields(true)
	err := dec.Decode(out)
	if errors.Is(err, io.EOF) {
		return nil
	}
	if err == nil {
		var rest yaml.Node
		if extra := dec.Decode(&rest); !errors.Is(extra, io.EOF) {
			err = fmt.Errorf("line %d: a second document; write one", rest.Line)
		}
	}
	if err == nil {
		return nil
	}
	var te *yaml.TypeError
	if !errors.As(err, &te) {
		return fault.New(fault.Invalid, "%s: %s", name, strings.TrimPrefix(err.Error(), "yaml: "))
	}
	known := keys(reflect.TypeOf(out))
	lines := make([]string, 0, len(te.Errors))
	for _, e := range te.Errors {
		if i := strings.Index(e, " not found in type"); i > 0 {
			at, field, _ := strings.Cut(e[:i], "field ")
			e = fmt.Sprintf("%sunknown key %q%s", at, field, nearest(field, known))
		}
		lines = append(lines, name+": "+e)
	}
	return fault.New(fault.Invalid, "%s", strings.Join(lines, "\n"))
}

// keys lists every key a configuration type knows.
func keys(t reflect.Type) []string {
	seen := map[string]bool{}
	var walk func(reflect.Type)
	walk = func(t reflect.Type) {
		for t.Kind() == reflect.Pointer || t.Kind() == reflect.Slice {
			t = t.Elem()
		}
		if t.Kind() != reflect.Struct {
			return
		}
		for i := range t.NumField() {
			f := t.Field(i)
			key, _, _ := strings.Cut(f.Tag.Get("yaml"), ",")
			if key != "" && key != "-" {
				seen[key] = true
			}
			walk(f.Type)
		}
	}
	walk(t)
	all := make([]string, 0, len(seen))
	for k := range seen {
		all = append(all, k)
	}
	sort.Strings(all)
	return all
}

func nearest(field string, known []string) string {
	best, at := 4, ""
	for _, k := range known {
		if d := distance(strings.ToLower(field), strings.ToLower(k)); d < best {
			best, at = d, k
		}
	}
	if at == "" {
		return "; known are " + strings.Join(known, ", ")
	}
	return fmt.Sprintf("; did you mean %q?", at)
}

// distance is Levenshtein's.
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := 1; i <= len(a); i++ {
		prev := row[0]
		row[0] = i
		for j := 1; j <= len(b); j++ {
			cost := 1
			if a[i-1] == b[j-1] {
				cost = 0
			}
			prev, row[j] = row[j], min(row[j]+1, row[j-1]+1, prev+cost)
		}
	}
	return row[len(b)]
}

// Differences lists the top-level keys whose values differ between two
// configurations of the same type, without those in except.
func Differences(old, next any, except map[string]bool) []string {
	a, b := reflect.ValueOf(old), reflect.ValueOf(next)
	var keys []string
	for i := range a.NumField() {
		key, _, _ := strings.Cut(a.Type().Field(i).Tag.Get("yaml"), ",")
		if !except[key] && !reflect.DeepEqual(a.Field(i).Interface(), b.Field(i).Interface()) {
			keys = append(keys, key)
		}
	}
	return keys
}
