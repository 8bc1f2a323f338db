package main

import (
	"errors"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"
)

// errNotSo says that a line of the report is not as it should be.
var errNotSo = errors.New("not every line is as it should be")

// report prints progress and results, and remembers what was not so.
type report struct {
	w   io.Writer
	bad []string
}

func newReport(w io.Writer) *report { return &report{w: w} }

func (r *report) title(s string) {
	fmt.Fprintf(r.w, "\n%s\n%s\n", s, strings.Repeat("─", len([]rune(s))))
}

func (r *report) say(format string, args ...any) { fmt.Fprintf(r.w, format+"\n", args...) }

// step runs do and says how long it took, with a dot for each two seconds.
func (r *report) step(name string, do func() error) error {
	fmt.Fprintf(r.w, "\n▸ %s\n", name)
	started := time.Now()
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		t := time.NewTicker(2 * time.Second)
		defer t.Stop()
		for {
			select {
			case <-stop:
				return
			case <-t.C:
				fmt.Fprintf(r.w, "  … %s, %.0f s\n", name, time.Since(started).Seconds())
			}
		}
	}()
	err := do()
	close(stop)
	<-stopped
	if err == nil {
		fmt.Fprintf(r.w, "  (%.1f s)\n", time.Since(started).Seconds())
	}
	return err
}

// check prints one line with its verdict.
func (r *report) check(ok bool, format string, args ...any) {
	line := fmt.Sprintf(format, args...)
	mark := "✓"
	if !ok {
		mark = "✗"
		r.bad = append(r.bad, line)
	}
	fmt.Fprintf(r.w, "  %s %s\n", mark, line)
}

func (r *report) table(rows [][]string) {
	w := tabwriter.NewWriter(r.w, 2, 4, 2, ' ', 0)
	for _, row := range rows {
		fmt.Fprintln(w, "  "+strings.Join(row, "\t"))
	}
	w.Flush()
}

func (r *report) verdict() error {
	if len(r.bad) == 0 {
		r.say("every line is as it should be")
		return nil
	}
	return fmt.Errorf("%w:\n  %s", errNotSo, strings.Join(r.bad, "\n  "))
}
