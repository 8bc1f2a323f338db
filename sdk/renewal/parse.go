package renewal

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"regexp"
	"sort"
	"strings"

	"go.yaml.in/yaml/v3"
)

// Bounds of one document.
const (
	maxDocument  = 1 << 20 // bytes; etcd's, and so Kubernetes', limit is the same order
	maxDepth     = 32
	maxDocuments = 10_000
)

// A Mistake is one thing that is wrong with a document.
type Mistake struct {
	Line int    // from 1
	Path string // e.g. spec.dnsNames[2]
	Text string // what is wrong and what to write instead
}

// A ParseError lists all that is wrong with a document.
type ParseError struct{ Mistakes []Mistake }

// Error implements error.
func (e *ParseError) Error() string {
	lines := make([]string, len(e.Mistakes))
	for i, m := range e.Mistakes {
		lines[i] = fmt.Sprintf("line %d: %s: %s", m.Line, m.Path, m.Text)
		if m.Path == "" {
			lines[i] = fmt.Sprintf("line %d: %s", m.Line, m.Text)
		}
	}
	return strings.Join(lines, "; ")
}

// Parse reads one Certificate in YAML or JSON. It is strict: a field that the
// API does not have, a field given twice, a number where a string belongs and
// an anchor are mistakes. Its error is a *ParseError, or says why the text is
// neither YAML nor JSON.
func Parse(data []byte) (*Certificate, error) {
	list, err := ParseAll(data)
	if err != nil {
		return nil, err
	}
	if len(list) != 1 {
		return nil, fmt.Errorf("there are %d certificates; want one", len(list))
	}
	return list[0], nil
}

// ParseAll reads a stream of documents separated by "---"; empty ones do not
// count.
func ParseAll(data []byte) ([]*Certificate, error) {
	if len(data) > maxDocument*16 {
		return nil, fmt.Errorf("%d bytes are over the limit of %d", len(data), maxDocument*16)
	}
	nodes, err := documents(data)
	if err != nil {
		return nil, err
	}
	var out []*Certificate
	var all ParseError
	for _, n := range nodes {
		c := new(Certificate)
		d := decoder{}
		d.decode(n, c, "")
		if len(d.mistakes) == 0 && (c.APIVersion != APIVersion || c.Kind != Kind) {
			d.add(n, "", fmt.Sprintf("this is a %s %s; want kind %s of apiVersion %s", c.APIVersion, c.Kind, Kind, APIVersion))
		}
		all.Mistakes = append(all.Mistakes, d.mistakes...)
		out = append(out, c)
	}
	if len(all.Mistakes) > 0 {
		sort.SliceStable(all.Mistakes, func(i, j int) bool { return all.Mistakes[i].Line < all.Mistakes[j].Line })
		return nil, &all
	}
	return out, nil
}

// decodeStrict reads one document into anything.
func decodeStrict(data []byte, into any) error {
	nodes, err := documents(data)
	if err != nil {
		return err
	}
	if len(nodes) > 1 {
		return fmt.Errorf("there are %d documents; want one", len(nodes))
	}
	d := decoder{}
	for _, n := range nodes {
		d.decode(n, into, "")
	}
	if len(d.mistakes) > 0 {
		return &ParseError{d.mistakes}
	}
	return nil
}

// documents returns the roots of all documents that have content.
func documents(data []byte) ([]*yaml.Node, error) {
	if trimmed := bytes.TrimLeft(data, " \t\r\n"); len(trimmed) > 0 && trimmed[0] == '{' {
		n, jsonErr := jsonNode(data)
		if jsonErr == nil {
			return []*yaml.Node{n}, nil
		}
		if errors.Is(jsonErr, errDeep) {
			return nil, jsonErr
		}
		if nodes, err := yamlNodes(data); err == nil {
			return nodes, nil // YAML's flow style begins like JSON
		}
		return nil, jsonErr
	}
	return yamlNodes(data)
}

func yamlNodes(data []byte) ([]*yaml.Node, error) {
	var out []*yaml.Node
	dec := yaml.NewDecoder(bytes.NewReader(data))
	for {
		var doc yaml.Node
		switch err := dec.Decode(&doc); {
		case errors.Is(err, io.EOF):
			return out, nil
		case err != nil:
			return nil, fmt.Errorf("this is not YAML: %s", strings.TrimPrefix(err.Error(), "yaml: "))
		}
		if len(doc.Content) != 1 || doc.Content[0].ShortTag() == "!!null" {
			continue
		}
		if out = append(out, doc.Content[0]); len(out) > maxDocuments {
			return nil, fmt.Errorf("there are more than %d documents", maxDocuments)
		}
	}
}

// jsonNode reads JSON into the same form as YAML, so that both are judged
// alike: encoding/json is silent about duplicate keys and wrong case.
func jsonNode(data []byte) (*yaml.Node, error) {
	r := jsonReader{dec: json.NewDecoder(bytes.NewReader(data))}
	for i, b := range data {
		if b == '\n' {
			r.newlines = append(r.newlines, int64(i))
		}
	}
	r.dec.UseNumber()
	n, err := r.value(0)
	if err == nil {
		if _, err = r.dec.Token(); errors.Is(err, io.EOF) {
			return n, nil
		} else if err == nil {
			err = errors.New("more follows after the object's end")
		}
	}
	return nil, fmt.Errorf("this is not JSON: line %d: %w", r.line(), err)
}

var errDeep = fmt.Errorf("it is nested deeper than %d", maxDepth)

type jsonReader struct {
	dec      *json.Decoder
	newlines []int64
}

func (r *jsonReader) line() int {
	at := r.dec.InputOffset()
	return 1 + sort.Search(len(r.newlines), func(i int) bool { return r.newlines[i] >= at })
}

func (r *jsonReader) value(depth int) (*yaml.Node, error) {
	if depth > maxDepth {
		return nil, errDeep
	}
	t, err := r.dec.Token()
	if errors.Is(err, io.EOF) {
		return nil, io.ErrUnexpectedEOF
	}
	if err != nil {
		return nil, err
	}
	n := &yaml.Node{Kind: yaml.ScalarNode, Line: r.line()}
	switch t := t.(type) {
	case string:
		n.Tag, n.Value = "!!str", t
	case json.Number:
		n.Tag, n.Value = "!!float", t.String()
		if !strings.ContainsAny(n.Value, ".eE") {
			n.Tag = "!!int"
		}
	case bool:
		n.Tag, n.Value = "!!bool", fmt.Sprint(t)
	case nil:
		n.Tag, n.Value = "!!null", "null"
	case json.Delim:
		n.Kind, n.Tag = yaml.MappingNode, "!!map"
		if t == '[' {
			n.Kind, n.Tag = yaml.SequenceNode, "!!seq"
		}
		for r.dec.More() {
			v, err := r.value(depth + 1)
			if err != nil {
				return nil, err
			}
			n.Content = append(n.Content, v)
			if n.Kind != yaml.MappingNode {
				continue
			}
			if v, err = r.value(depth + 1); err != nil {
				return nil, err
			}
			n.Content = append(n.Content, v)
		}
		if _, err := r.dec.Token(); err != nil {
			return nil, err
		}
	}
	return n, nil
}

// YAML writes the certificate as YAML.
func (c *Certificate) YAML() ([]byte, error) { return encodeYAML(c) }

// encodeYAML writes the fields in the order and under the names of the JSON.
func encodeYAML(v any) ([]byte, error) {
	raw, err := json.Marshal(v)
	if err != nil {
		return nil, err
	}
	n, err := jsonNode(raw)
	if err != nil {
		return nil, err
	}
	quoteOld(n)
	var b bytes.Buffer
	enc := yaml.NewEncoder(&b)
	enc.SetIndent(2)
	if err := enc.Encode(n); err != nil {
		return nil, err
	}
	return b.Bytes(), enc.Close()
}

// oldScalars are strings that YAML 1.1, which Kubernetes reads, takes for
// booleans and for numbers to the base of 60.
var oldScalars = regexp.MustCompile(`^(?i:y|n|yes|no|on|off|[-+]?[0-9][0-9_]*(:[0-5]?[0-9])+(\.[0-9_]*)?)$`)

func quoteOld(n *yaml.Node) {
	if n.Tag == "!!str" && oldScalars.MatchString(n.Value) {
		n.Style = yaml.DoubleQuotedStyle
	}
	for _, c := range n.Content {
		quoteOld(c)
	}
}
