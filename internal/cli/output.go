package cli

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"
	"unicode"

	"go.yaml.in/yaml/v3"
)

// table is rows under a heading; columns after wideFrom show with -o wide.
type table struct {
	heading  []string
	wideFrom int // 0 shows all
	rows     [][]string
	names    []string // for -o name
	none     string   // said on stderr when there are no rows
}

// print writes data as JSON or YAML, or the table.
func (o *options) print(data any, t table) error {
	switch o.output {
	case "json":
		enc := json.NewEncoder(o.out)
		enc.SetIndent("", "  ")
		enc.SetEscapeHTML(false)
		return enc.Encode(data)
	case "yaml":
		return writeYAML(o.out, data)
	case "name":
		for _, n := range t.names {
			fmt.Fprintln(o.out, n)
		}
		return nil
	}
	if len(t.rows) == 0 {
		fmt.Fprintln(o.errOut, t.none)
		return nil
	}
	n := len(t.heading)
	if o.output != "wide" && t.wideFrom > 0 {
		n = t.wideFrom
	}
	w := tabwriter.NewWriter(o.out, 0, 4, 2, ' ', 0)
	fmt.Fprintln(w, strings.Join(t.heading[:n], "\t"))
	for _, row := range t.rows {
		line := make([]string, n)
		for i, cell := range row[:n] {
			line[i] = cells.Replace(cell)
		}
		fmt.Fprintln(w, strings.Join(line, "\t"))
	}
	return w.Flush()
}

// plain leaves out what would command a terminal, or turn a line around: some
// of what is shown was written by nodes, and by peers that nobody verified.
type plain struct{ io.Writer }

// Write implements io.Writer.
func (p plain) Write(b []byte) (int, error) {
	commands := func(r rune) bool {
		return unicode.IsControl(r) && r != '\n' && r != '\t' || unicode.Is(unicode.Bidi_Control, r)
	}
	if !bytes.ContainsFunc(b, commands) {
		return p.Writer.Write(b)
	}
	_, err := p.Writer.Write(bytes.Map(func(r rune) rune {
		if commands(r) {
			return unicode.ReplacementChar
		}
		return r
	}, b))
	return len(b), err
}

// cells make one row, whatever is in them.
var cells = strings.NewReplacer("\n", " ", "\t", " ", "\v", " ", "\f", " ")

// within keeps the lines of a text that has several below its own.
func within(text string) string { return strings.ReplaceAll(text, "\n", "\n      ") }

// writeYAML keeps JSON's field names.
func writeYAML(w io.Writer, data any) error {
	raw, err := json.Marshal(data)
	if err != nil {
		return err
	}
	var node yaml.Node // JSON is YAML: order is kept
	if err := yaml.Unmarshal(raw, &node); err != nil {
		return err
	}
	block(&node)
	enc := yaml.NewEncoder(w)
	enc.SetIndent(2)
	defer enc.Close()
	return enc.Encode(&node)
}

func block(n *yaml.Node) {
	n.Style = 0
	for _, c := range n.Content {
		block(c)
	}
}

// stamp is RFC 3339 in UTC, empty for zero.
func stamp(unix int64) string {
	if unix == 0 {
		return ""
	}
	return time.Unix(unix, 0).UTC().Format(time.RFC3339)
}

// until is the time left, rounded for people.
func until(unix int64) string {
	if unix == 0 {
		return "-"
	}
	return age(time.Until(time.Unix(unix, 0)))
}

// since is the time passed, rounded for people.
func since(unix int64) string {
	if unix == 0 {
		return "-"
	}
	return age(time.Since(time.Unix(unix, 0)))
}

func age(d time.Duration) string {
	sign := ""
	if d < 0 {
		sign, d = "-", -d
	}
	in := func(unit time.Duration, name string) string {
		return fmt.Sprintf("%s%d%s", sign, (d+unit/2)/unit, name)
	}
	switch {
	case d < 2*time.Minute:
		return in(time.Second, "s")
	case d < 2*time.Hour:
		return in(time.Minute, "m")
	case d < 3*day:
		return in(time.Hour, "h")
	}
	return in(day, "d")
}

func millis(nanos int64) string {
	return fmt.Sprintf("%.1f ms", float64(nanos)/1e6)
}

func dash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

func plural(n int, one string) string {
	if n == 1 {
		return "1 " + one
	}
	return fmt.Sprintf("%d %ss", n, one)
}
