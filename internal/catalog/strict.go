package catalog

import (
	"bytes"
	"encoding/json"
	"reflect"
	"slices"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"
)

// Bounds of one document after its aliases are expanded: a few lines of YAML
// can otherwise stand for gigabytes.
const (
	maxNodes = 100_000
	maxDepth = 64
)

// strict walks a YAML tree beside the Go type it must fit, reports every
// unknown field, wrong type and duplicate with its line, remembers the line
// of every path, and writes JSON.
type strict struct {
	*reading
	lines  map[string]int
	budget int // nodes that may still be visited
	over   bool
	meant  []string // paths of fields that unknown ones probably stand for
}

func typeOf(object any) reflect.Type { return reflect.TypeOf(object).Elem() }

var unmarshaler = reflect.TypeFor[json.Unmarshaler]()

// value writes n as JSON; t is nil where any type will do.
func (s *strict) value(out *bytes.Buffer, n *yaml.Node, t reflect.Type, path string, depth int) {
	if s.budget--; s.budget < 0 || depth > maxDepth || len(s.problems) > maxProblems {
		if !s.over && len(s.problems) <= maxProblems {
			s.problem(n.Line, path, "write the resource out, without anchors and aliases",
				"the document is too deep or too large once its aliases are expanded")
		}
		s.over = true
		out.WriteString("null")
		return
	}
	if _, ok := s.lines[path]; !ok {
		s.lines[path] = n.Line
	}
	if n.Kind == yaml.AliasNode {
		s.value(out, n.Alias, t, path, depth+1)
		return
	}
	for t != nil && t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	if n.Kind == yaml.ScalarNode && n.ShortTag() == "!!null" {
		out.WriteString("null")
		return
	}
	if t != nil && reflect.PointerTo(t).Implements(unmarshaler) {
		s.foreign(out, n, t, path, depth)
		return
	}
	switch {
	case t == nil || t.Kind() == reflect.Interface:
		s.free(out, n, path, depth)
	case t.Kind() == reflect.Struct:
		s.structure(out, n, t, path, depth)
	case t.Kind() == reflect.Map:
		s.mapping(out, n, t.Elem(), path, depth)
	case t.Kind() == reflect.Slice && t.Elem().Kind() != reflect.Uint8:
		s.sequence(out, n, t.Elem(), path, depth)
	default:
		s.scalar(out, n, t, path)
	}
}

// foreign lets a type judge its own JSON.
func (s *strict) foreign(out *bytes.Buffer, n *yaml.Node, t reflect.Type, path string, depth int) {
	var own bytes.Buffer
	s.free(&own, n, path, depth)
	if err := json.Unmarshal(own.Bytes(), reflect.New(t).Interface()); err != nil {
		s.wrong(n, path, foreignWanted(t))
		own.Reset()
		own.WriteString("null")
	}
	out.Write(own.Bytes())
}

func foreignWanted(t reflect.Type) string {
	switch t.Name() {
	case "IntOrString":
		return "a number or a name"
	case "Time", "MicroTime":
		return "a time such as 2026-01-31T12:00:00Z"
	}
	return "a " + t.Name()
}

func (s *strict) structure(out *bytes.Buffer, n *yaml.Node, t reflect.Type, path string, depth int) {
	if n.Kind != yaml.MappingNode {
		s.wrong(n, path, "a mapping of fields")
		out.WriteString("null")
		return
	}
	fields := jsonFields(t)
	s.pairs(out, n, path, func(key, value *yaml.Node, at string) bool {
		ft, ok := fields[key.Value]
		if !ok && len(s.problems) > maxProblems {
			return false
		}
		if !ok {
			names := make([]string, 0, len(fields))
			for name := range fields {
				names = append(names, name)
			}
			slices.Sort(names)
			if n := nearest(key.Value, names); n != "" {
				s.meant = append(s.meant, join(path, n))
			}
			s.problem(key.Line, at, didYouMean(key.Value, names), "unknown field %q", key.Value)
			return false
		}
		s.value(out, value, ft, at, depth+1)
		return true
	})
}

func (s *strict) mapping(out *bytes.Buffer, n *yaml.Node, elem reflect.Type, path string, depth int) {
	if n.Kind != yaml.MappingNode {
		s.wrong(n, path, "a mapping")
		out.WriteString("null")
		return
	}
	s.pairs(out, n, path, func(_, value *yaml.Node, at string) bool {
		if elem != nil && value.Kind == yaml.ScalarNode && value.ShortTag() == "!!null" {
			s.wrong(value, at, "a value")
			return false
		}
		s.value(out, value, elem, at, depth+1)
		return true
	})
}

// pairs writes an object; each is called once for every key that is not a
// duplicate, after the key was written, and says whether it wrote a value.
func (s *strict) pairs(out *bytes.Buffer, n *yaml.Node, path string, each func(key, value *yaml.Node, at string) bool) {
	seen := make(map[string]int, len(n.Content)/2)
	out.WriteByte('{')
	for i := 0; i+1 < len(n.Content); i += 2 {
		key, value := n.Content[i], n.Content[i+1]
		at := join(path, key.Value)
		if key.Kind != yaml.ScalarNode || key.ShortTag() == "!!merge" || key.Tag == "!!binary" {
			s.problem(key.Line, path, "write every field out as name: value", "a key must be a plain name")
			continue
		}
		if first, dup := seen[key.Value]; dup {
			s.problem(key.Line, at, "keep one of the two", "field %q is given twice, first on line %d", key.Value, first)
			continue
		}
		seen[key.Value] = key.Line
		s.lines[at] = key.Line
		mark := out.Len()
		if mark > 0 && out.Bytes()[mark-1] != '{' {
			out.WriteByte(',')
		}
		writeString(out, key.Value)
		out.WriteByte(':')
		if !each(key, value, at) {
			out.Truncate(mark)
		}
	}
	out.WriteByte('}')
}

func (s *strict) sequence(out *bytes.Buffer, n *yaml.Node, elem reflect.Type, path string, depth int) {
	if n.Kind != yaml.SequenceNode {
		s.wrong(n, path, "a list")
		out.WriteString("null")
		return
	}
	out.WriteByte('[')
	for i, item := range n.Content {
		if i > 0 {
			out.WriteByte(',')
		}
		at := path + "[" + strconv.Itoa(i) + "]"
		if elem != nil && item.Kind == yaml.ScalarNode && item.ShortTag() == "!!null" {
			s.wrong(item, at, "a value")
		}
		s.value(out, item, elem, at, depth+1)
	}
	out.WriteByte(']')
}

// free writes n as whatever it is.
func (s *strict) free(out *bytes.Buffer, n *yaml.Node, path string, depth int) {
	switch n.Kind {
	case yaml.MappingNode:
		s.mapping(out, n, nil, path, depth)
	case yaml.SequenceNode:
		s.sequence(out, n, nil, path, depth)
	case yaml.AliasNode:
		s.value(out, n, nil, path, depth)
	default:
		s.scalar(out, n, nil, path)
	}
}

func (s *strict) scalar(out *bytes.Buffer, n *yaml.Node, t reflect.Type, path string) {
	want := scalarWanted(t)
	tag := n.ShortTag()
	if n.Kind != yaml.ScalarNode {
		s.wrong(n, path, want)
		out.WriteString("null")
		return
	}
	if tag == "!!timestamp" {
		tag = "!!str"
	}
	switch {
	case tag == "!!str" && (t == nil || t.Kind() == reflect.String):
		writeString(out, n.Value)
	case tag == "!!bool" && (t == nil || t.Kind() == reflect.Bool):
		var b bool
		if n.Decode(&b) != nil {
			s.wrong(n, path, want)
		}
		out.WriteString(strconv.FormatBool(b))
	case tag == "!!int" && (t == nil || t.ConvertibleTo(reflect.TypeFor[int64]()) && t.Kind() != reflect.String):
		var i int64
		if n.Decode(&i) != nil || t != nil && !fits(t, i) {
			s.wrong(n, path, want)
			i = 0
		}
		out.WriteString(strconv.FormatInt(i, 10))
	case tag == "!!float" && (t == nil || t.Kind() == reflect.Float64):
		var f float64
		if n.Decode(&f) != nil || f-f != 0 { // not a number, or infinite
			s.wrong(n, path, want)
			f = 0
		}
		out.WriteString(strconv.FormatFloat(f, 'g', -1, 64))
	default:
		s.wrong(n, path, want)
		out.WriteString("null")
	}
}

func fits(t reflect.Type, i int64) bool {
	v := reflect.New(t).Elem()
	switch {
	case v.CanInt():
		return !v.OverflowInt(i)
	case v.CanUint():
		return i >= 0 && !v.OverflowUint(uint64(i))
	}
	return true
}

func scalarWanted(t reflect.Type) string {
	switch {
	case t == nil:
		return "a plain value"
	case t.Kind() == reflect.String:
		return "text"
	case t.Kind() == reflect.Bool:
		return "true or false"
	}
	return "a whole number"
}

func (s *strict) wrong(n *yaml.Node, path, want string) {
	fix := "write " + want
	if n.Kind == yaml.ScalarNode && want == "text" {
		fix = "put it in quotes: " + strconv.Quote(n.Value)
	}
	s.problem(n.Line, path, fix, "wants %s, this is %s", want, shape(n))
}

// shape names what a node is, in words.
func shape(n *yaml.Node) string {
	switch n.Kind {
	case yaml.MappingNode:
		return "a mapping"
	case yaml.SequenceNode:
		return "a list"
	case yaml.AliasNode:
		return "an alias"
	}
	value := n.Value
	if len(value) > 40 {
		value = value[:40] + "…"
	}
	switch n.ShortTag() {
	case "!!null":
		return "empty"
	case "!!int", "!!float":
		return "the number " + value
	case "!!bool":
		return "the truth value " + value
	}
	return "the text " + strconv.Quote(value)
}

func join(path, key string) string {
	switch {
	case path == "":
		return key
	case strings.ContainsAny(key, "./[]"):
		return path + "[" + key + "]"
	}
	return path + "." + key
}

func writeString(out *bytes.Buffer, s string) {
	b, _ := json.Marshal(s) // a string always marshals
	out.Write(b)
}

// jsonFields are the fields of a struct by JSON name, embedded ones included.
func jsonFields(t reflect.Type) map[string]reflect.Type {
	fields := make(map[string]reflect.Type, t.NumField())
	for i := range t.NumField() {
		f := t.Field(i)
		name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
		switch {
		case name == "" && f.Anonymous:
			for n, ft := range jsonFields(f.Type) {
				fields[n] = ft
			}
		case name != "" && name != "-" && f.IsExported():
			fields[name] = f.Type
		}
	}
	return fields
}
