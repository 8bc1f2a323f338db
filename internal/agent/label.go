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
	long  bool // the line is longer than any sample, and left out
}

// maxSample bounds one line: what an Envoy says is not ours.
const maxSample = 64 << 10

func labelled(w io.Writer, session string) io.Writer {
	return &labelWriter{w: w, label: []byte(`session="` + session + `"`)}
}

func (l *labelWriter) Write(p []byte) (int, error) {
	written := len(p)
	for {
		i := bytes.IndexByte(p, '\n')
		if i < 0 {
			l.add(p)
			return written, nil
		}
		l.add(p[:i])
		if err := l.flush(); err != nil {
			return 0, err
		}
		p = p[i+1:]
	}
}

func (l *labelWriter) add(p []byte) {
	if l.long = l.long || len(l.line)+len(p) > maxSample; !l.long {
		l.line = append(l.line, p...)
	}
}

func (l *labelWriter) flush() error {
	line, long := l.line, l.long
	l.line, l.long = l.line[:0], false
	if long || len(line) == 0 || line[0] == '#' {
		return nil
	}
	var out []byte
	if i := bytes.IndexByte(line, '{'); i >= 0 {
		out = append(append(append(out, line[:i+1]...), l.label...), ',')
		if i+1 < len(line) && line[i+1] == '}' {
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
