package renewal

import (
	"fmt"
	"math"
	"reflect"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"
)

// decoder fills Go values from a document and collects every mistake.
type decoder struct{ mistakes []Mistake }

const maxMistakes = 50

func (d *decoder) add(n *yaml.Node, path, text string) {
	if len(d.mistakes) < maxMistakes {
		d.mistakes = append(d.mistakes, Mistake{n.Line, path, text})
	}
}

func (d *decoder) decode(n *yaml.Node, into any, path string) {
	d.value(n, reflect.ValueOf(into).Elem(), path, 0)
}

func (d *decoder) value(n *yaml.Node, v reflect.Value, path string, depth int) {
	switch {
	case n.Kind == yaml.AliasNode || n.Anchor != "":
		d.add(n, path, "anchors and aliases are not read; write the value out")
		return
	case depth > maxDepth:
		d.add(n, path, fmt.Sprintf("it is nested deeper than %d", maxDepth))
		return
	case n.Kind == yaml.ScalarNode && n.ShortTag() == "!!null":
		return // as if it were absent
	case v.Kind() == reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		d.value(n, v.Elem(), path, depth)
		return
	}
	switch target := v.Addr().Interface().(type) {
	case *Time:
		d.scalar(n, path, "a time", target.parse, "!!str", "!!timestamp")
		return
	case *Duration:
		d.scalar(n, path, "a duration", target.parse, "!!str")
		return
	}
	switch v.Kind() {
	case reflect.Struct:
		d.object(n, v, path, depth)
	case reflect.Map:
		d.mapping(n, v, path, depth)
	case reflect.Slice:
		d.sequence(n, v, path, depth)
	case reflect.String:
		d.scalar(n, path, "a string", func(s string) error { v.SetString(s); return nil }, "!!str")
	case reflect.Bool:
		d.scalar(n, path, "true or false", func(s string) error {
			b, err := strconv.ParseBool(s)
			v.SetBool(b)
			return err
		}, "!!bool")
	case reflect.Int, reflect.Int32, reflect.Int64:
		d.scalar(n, path, "a whole number", func(s string) error {
			i, err := strconv.ParseInt(s, 10, v.Type().Bits())
			v.SetInt(i)
			if err != nil {
				return fmt.Errorf("%s is not a whole number of %d bits", s, v.Type().Bits())
			}
			return nil
		}, "!!int")
	case reflect.Interface:
		if x := d.any(n, path, depth); x != nil {
			v.Set(reflect.ValueOf(x))
		}
	default:
		panic("renewal: no decoder for " + v.Type().String())
	}
}

// scalar checks the kind of a value, so that 1.10 is not silently "1.10" and
// "5" not silently 5.
func (d *decoder) scalar(n *yaml.Node, path, want string, set func(string) error, tags ...string) {
	if n.Kind == yaml.ScalarNode {
		for _, tag := range tags {
			if n.ShortTag() != tag {
				continue
			}
			if err := set(n.Value); err != nil {
				d.add(n, path, err.Error())
			}
			return
		}
	}
	text := fmt.Sprintf("want %s, not %s", want, kindOf(n))
	if n.Kind == yaml.ScalarNode && tags[0] == "!!str" {
		text += "; put it in quotes"
	}
	d.add(n, path, text)
}

func kindOf(n *yaml.Node) string {
	switch n.Kind {
	case yaml.MappingNode:
		return "an object"
	case yaml.SequenceNode:
		return "a list"
	}
	return fmt.Sprintf("the %s %.40s", strings.TrimPrefix(n.ShortTag(), "!!"), n.Value)
}

// pairs calls f for each key and value of an object.
func (d *decoder) pairs(n *yaml.Node, path string, f func(key, value *yaml.Node, path string)) {
	if n.Kind != yaml.MappingNode {
		d.add(n, path, "want an object, not "+kindOf(n))
		return
	}
	seen := make(map[string]int, len(n.Content)/2)
	for i := 0; i+1 < len(n.Content); i += 2 {
		key, value := n.Content[i], n.Content[i+1]
		if key.Kind != yaml.ScalarNode || key.ShortTag() != "!!str" || key.Anchor != "" {
			d.add(key, path, "the name of a field is a plain string")
			continue
		}
		below := key.Value
		if path != "" {
			below = path + "." + key.Value
		}
		if first, twice := seen[key.Value]; twice {
			d.add(key, below, fmt.Sprintf("given twice; first in line %d", first))
			continue
		}
		seen[key.Value] = key.Line
		f(key, value, below)
	}
}

func (d *decoder) object(n *yaml.Node, v reflect.Value, path string, depth int) {
	d.pairs(n, path, func(key, value *yaml.Node, path string) {
		for i := range v.NumField() {
			name, _, _ := strings.Cut(v.Type().Field(i).Tag.Get("json"), ",")
			if name == key.Value {
				d.value(value, v.Field(i), path, depth+1)
				return
			}
		}
		text := "there is no such field"
		for i := range v.NumField() {
			name, _, _ := strings.Cut(v.Type().Field(i).Tag.Get("json"), ",")
			if strings.EqualFold(name, key.Value) {
				text += "; did you mean " + name + "?"
			}
		}
		d.add(key, path, text)
	})
}

func (d *decoder) mapping(n *yaml.Node, v reflect.Value, path string, depth int) {
	v.Set(reflect.MakeMap(v.Type()))
	d.pairs(n, path, func(key, value *yaml.Node, path string) {
		e := reflect.New(v.Type().Elem()).Elem()
		d.value(value, e, path, depth+1)
		v.SetMapIndex(reflect.ValueOf(key.Value), e)
	})
	if v.Len() == 0 {
		v.SetZero()
	}
}

func (d *decoder) sequence(n *yaml.Node, v reflect.Value, path string, depth int) {
	if n.Kind != yaml.SequenceNode {
		d.add(n, path, "want a list, not "+kindOf(n))
		return
	}
	if len(n.Content) == 0 {
		return
	}
	v.Set(reflect.MakeSlice(v.Type(), len(n.Content), len(n.Content)))
	for i, e := range n.Content {
		d.value(e, v.Index(i), fmt.Sprintf("%s[%d]", path, i), depth+1)
	}
}

// any reads what is carried along without being understood, as encoding/json
// would.
func (d *decoder) any(n *yaml.Node, path string, depth int) any {
	switch n.Kind {
	case yaml.MappingNode:
		m := map[string]any{}
		d.pairs(n, path, func(key, value *yaml.Node, path string) {
			var x any
			d.value(value, reflect.ValueOf(&x).Elem(), path, depth+1)
			m[key.Value] = x
		})
		return m
	case yaml.SequenceNode:
		list := make([]any, len(n.Content))
		for i, e := range n.Content {
			d.value(e, reflect.ValueOf(&list[i]).Elem(), fmt.Sprintf("%s[%d]", path, i), depth+1)
		}
		return list
	}
	switch n.ShortTag() {
	case "!!str", "!!timestamp":
		return n.Value
	case "!!bool":
		b, _ := strconv.ParseBool(n.Value)
		return b
	case "!!int", "!!float":
		if f, err := strconv.ParseFloat(n.Value, 64); err == nil && !math.IsInf(f, 0) && !math.IsNaN(f) {
			return f
		}
	}
	d.add(n, path, "this value cannot be read: "+kindOf(n))
	return nil
}
