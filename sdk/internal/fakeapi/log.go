package fakeapi

import (
	"bytes"
	"strings"
	"sync"
)

// Log is a log that a test reads while others write.
type Log struct {
	mu sync.Mutex // guards what follows
	b  bytes.Buffer
}

// Write implements io.Writer.
func (l *Log) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

// Count is how often a text was written.
func (l *Log) Count(text string) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Count(l.b.String(), text)
}
