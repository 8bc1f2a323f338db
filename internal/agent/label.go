package agent

import (
	"bytes"
	"io"
)

// labelWriter adds a label to each sample of Prometheus' text format that
// passes through it, and drops comments: several Envoys would repeat them.
type labelWriter struct {
	w     io.Writer
	label []byte // session="…"
	line  []byte
}

func labelled(w io.Writer, session string) io.Writer {
	return &labelWriter{w: w, label: []byte(`session="` + session + `"`)}
}

func (l *labelWriter) Write(p []byte) (int, error) {
	written := len(p)
	for {
		i := bytes.IndexByte(p, '\n')
		if i < 0 {
			l.line = append(l.line, p...)
			return written, nil
		}
		l.line = append(l.line, p[:i]...)
		if err := l.flush(); err != nil {
			return 0, err
		}
		p = p[i+1:]
	}
}

func (l *labelWriter) flush() error {
	line := l.line
	l.line = l.line[:0]
	if len(line) == 0 || line[0] == '#' {
		return nil
	}
	var out []byte
	if i := bytes.IndexByte(line, '{'); i >= 0 {
		out = append(append(append(out, line[:i+1]...), l.label...), ',')
		if line[i+1] == '}' {
			out = out[:len(out)-1]
		}
		out = append(out, line[i+1:]...)
	} else if i := bytes.IndexByte(line, ' '); i >= 0 {
		out = append(append(append(append(out, line[:i]...), '{'), l.label...), '}')
		out = append(out, line[i:]...)
	} else {
		return nil
	}
	_, err := l.w.Write(append(out, '\n'))
	return err
}
