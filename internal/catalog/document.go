package catalog

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"regexp"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"

	"go.yaml.in/yaml/v3"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	sigsjson "sigs.k8s.io/json"

	adminv1 "github.com/legation-io/legation/api/admin/v1"
)

// declared is one resource read from a document.
type declared struct {
	kind   *kind
	object metav1.Object
	file   string
	lines  map[string]int // by path, e.g. "spec.selectors[0]"
	line   int            // where the resource starts
	broken []string       // paths about which something was said already
	stored bool           // read from the store, not from a person
}

// silent reports whether a problem at path follows from one that was told.
func (d *declared) silent(path string) bool {
	for _, b := range d.broken {
		if b == "" || b == path || within(path, b) || within(b, path) {
			return true
		}
	}
	return false
}

func within(inner, outer string) bool {
	return len(inner) > len(outer) && inner[:len(outer)] == outer && (inner[len(outer)] == '.' || inner[len(outer)] == '[')
}

func (d *declared) key() string {
	return d.kind.plural + "/" + d.object.GetNamespace() + "/" + d.object.GetName()
}

// lineOf is the line of a path, or of its nearest parent that was written.
func (d *declared) lineOf(path string) int {
	for path != "" {
		if n, ok := d.lines[path]; ok {
			return n
		}
		path = path[:max(strings.LastIndexAny(path, ".["), 0)]
	}
	return d.line
}

// reading reads the documents of one file; it collects every mistake.
type reading struct {
	file     string
	defaults string // namespace for documents that name none
	declared []*declared
	problems []*adminv1.Problem
}

// maxProblems bounds what is told of one file.
const maxProblems = 200

func (r *reading) problem(line int, field, fix, message string, args ...any) {
	if len(r.problems) == maxProblems {
		field, fix, message, args = "", "mend those above first", "there are more mistakes than the %d told", []any{maxProblems}
	} else if len(r.problems) > maxProblems {
		return
	}
	r.problems = append(r.problems, &adminv1.Problem{
		File: r.file, Line: uint32(max(line, 0)), Field: field,
		Message: fmt.Sprintf(message, args...), Fix: fix,
	})
}

// read parses YAML or JSON, several documents or a List, strictly. It checks
// the shape only: fields and their types.
func read(file string, content []byte, namespace string) *reading {
	r := &reading{file: file, defaults: namespace}
	decoder := yaml.NewDecoder(bytes.NewReader(content))
	for {
		var doc yaml.Node
		err := decoder.Decode(&doc)
		if errors.Is(err, io.EOF) {
			return r
		}
		if len(r.problems) > maxProblems {
			return r
		}
		if err != nil {
			line, text := yamlError(content, err)
			r.problem(line, "", "mend the YAML here; indentation and quotes are the usual cause",
				"not YAML: %s", text)
			return r
		}
		if len(doc.Content) == 1 {
			r.document(doc.Content[0])
		}
	}
}

var yamlLine = regexp.MustCompile(`^(?:yaml: )?(?:line (\d+): )?`)

// yamlError is the line and the text of what the parser says. It names no line
// for the first one, nor for bytes that are no text.
func yamlError(content []byte, err error) (int, string) {
	text := err.Error()
	m := yamlLine.FindStringSubmatch(text)
	line, _ := strconv.Atoi(m[1])
	if line == 0 {
		at := bytes.IndexFunc(content, func(r rune) bool {
			return r == utf8.RuneError || unicode.IsControl(r) && !strings.ContainsRune("\t\n\r\u0085", r)
		})
		line = 1 + bytes.Count(content[:max(at, 0)], []byte("\n"))
	}
	return line, text[len(m[0]):]
}

func (r *reading) document(n *yaml.Node) {
	if n.Kind == yaml.ScalarNode && n.ShortTag() == "!!null" {
		return // an empty document between two ---
	}
	if n.Kind != yaml.MappingNode {
		r.problem(n.Line, "", "start with apiVersion: and kind:", "a resource is a mapping, this is %s", shape(n))
		return
	}
	apiVersion, kindName := field(n, "apiVersion"), field(n, "kind")
	if text(kindName) == "List" && text(apiVersion) == "v1" {
		r.list(n)
		return
	}
	k := r.kindOf(n, apiVersion, kindName)
	if k == nil {
		return
	}
	for _, name := range k.drop {
		drop(n, name)
	}
	if meta := field(n, "metadata"); meta != nil && meta.Kind == yaml.MappingNode {
		for _, name := range serverFields {
			drop(meta, name)
		}
	}
	s := &strict{reading: r, lines: map[string]int{}, budget: maxNodes}
	object := k.make()
	var out bytes.Buffer
	before := len(r.problems)
	s.value(&out, n, typeOf(object), "", 0)
	if s.over {
		return
	}
	d := &declared{kind: k, object: object, file: r.file, lines: s.lines, line: n.Line, broken: s.meant}
	for _, p := range r.problems[before:] {
		d.broken = append(d.broken, p.Field)
	}
	// The walk decided; the strict decoder is the second pair of eyes.
	mistakes, err := sigsjson.UnmarshalStrict(out.Bytes(), object)
	if err = errors.Join(append(mistakes, err)...); err != nil {
		if len(d.broken) > 0 {
			return // the walk said why
		}
		r.problem(n.Line, "", "", "%v", err)
		return
	}
	if object.GetNamespace() == "" {
		object.SetNamespace(r.defaults)
	}
	r.declared = append(r.declared, d)
}

// serverFields of metadata are written by a Kubernetes API server and
// declare nothing.
var serverFields = []string{
	"uid", "resourceVersion", "generation", "creationTimestamp", "managedFields", "selfLink", "ownerReferences", "finalizers",
}

func (r *reading) list(n *yaml.Node) {
	items := field(n, "items")
	if items == nil || items.Kind != yaml.SequenceNode {
		r.problem(n.Line, "items", "give items: a list of resources", "a List has no items")
		return
	}
	for _, item := range items.Content {
		if text(field(item, "kind")) == "List" {
			r.problem(item.Line, "items", "write its items here", "a List holds a List")
			continue
		}
		r.document(item)
	}
}

func (r *reading) kindOf(n, apiVersion, kindName *yaml.Node) *kind {
	if text(kindName) == "" {
		r.problem(n.Line, "kind", "add kind: "+strings.Join(Kinds(), " | "), "the resource says no kind")
		return nil
	}
	for _, k := range kinds {
		if k.name != text(kindName) {
			continue
		}
		if text(apiVersion) == k.apiVersion {
			return k
		}
		line := n.Line
		if apiVersion != nil {
			line = apiVersion.Line
		}
		r.problem(line, "apiVersion", "write apiVersion: "+k.apiVersion,
			"%s has no version %q here", k.name, text(apiVersion))
		return nil
	}
	r.problem(kindName.Line, "kind", didYouMean(text(kindName), Kinds()), "unknown kind %q", text(kindName))
	return nil
}

func field(n *yaml.Node, name string) *yaml.Node {
	if n == nil || n.Kind != yaml.MappingNode {
		return nil
	}
	for i := 0; i+1 < len(n.Content); i += 2 {
		if n.Content[i].Value == name {
			return n.Content[i+1]
		}
	}
	return nil
}

func drop(n *yaml.Node, name string) {
	for i := 0; i+1 < len(n.Content); i += 2 {
		if n.Content[i].Value == name {
			n.Content = append(n.Content[:i:i], n.Content[i+2:]...)
			return
		}
	}
}

func text(n *yaml.Node) string {
	if n == nil || n.Kind != yaml.ScalarNode {
		return ""
	}
	return n.Value
}
