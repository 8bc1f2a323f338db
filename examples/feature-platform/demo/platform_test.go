package main

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestAnInterruptedQuestionForAJDKIsNoAnswer(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "java"), []byte("#!/bin/sh\nexit 130\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", dir)
	var said bytes.Buffer
	d := &demo{out: newReport(&said)}
	ctx, cancel := context.WithCancel(t.Context())
	if path, _, err := d.retrieval(ctx); err != nil || path != d.program("retrieval") || !strings.Contains(said.String(), "no JDK") {
		t.Errorf("a JDK that does not answer: %s, %v, said %q", path, err, said.String())
	}
	said.Reset()
	cancel()
	if _, _, err := d.retrieval(ctx); !errors.Is(err, context.Canceled) || said.Len() > 0 {
		t.Errorf("%v, said %q", err, said.String())
	}
}
