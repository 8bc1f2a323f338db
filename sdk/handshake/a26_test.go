package handshake

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"log/slog"
	"strings"
	"testing"
	"unicode"

	"github.com/legation-io/legation/sdk/chaincheck"
)

// A stranger chooses the server name, the protocols and every name in a
// certificate, before anybody verified anything.
func TestA26WhatAStrangerWroteStaysInItsField(t *testing.T) {
	w := newWorld(t)
	const evil = "x\nlevel=ERROR msg=\"disk full\"\r\x00\x1b[2J\u202e\u2028\xff"
	stranger := w.foreign.issue(t, "spiffe://example.org/client", func(c *x509.Certificate) {
		c.Subject.CommonName = strings.ToValidUTF8(evil, "?")
		c.Subject.Organization = []string{strings.Repeat("long ", 5000)}
	})
	server, client := w.expects(stranger, w.judge(chaincheck.Client))
	client.config.ServerName = evil
	server.config.NextProtos = []string{"h2"}
	client.config.NextProtos = []string{"h2", evil[:40], "p\n"}
	for _, row := range []struct {
		name     string
		old      uint16
		protocol []string
	}{{"a certificate and a server name", 0, client.config.NextProtos}, {"only protocols", 0, []string{evil[:40], "p\n"}}, {"an old client", tls.VersionTLS12, nil}} {
		t.Run(row.name, func(t *testing.T) {
			s, c := *server, *client
			s.config, c.config = server.config.Clone(), client.config.Clone()
			c.config.NextProtos = row.protocol
			if row.old != 0 {
				c.config.MaxVersion, s.config.MinVersion = row.old, tls.VersionTLS13
			}
			meet(t, &s, &c)
			if s.err == nil {
				t.Fatal("the stranger was let in")
			}
			var text, json bytes.Buffer
			LogHook(slog.New(slog.NewTextHandler(&text, nil)))(context.Background(), s.events[0])
			LogHook(slog.New(slog.NewJSONHandler(&json, nil)))(context.Background(), s.events[0])
			for what, got := range map[string]string{"the error": s.err.Error() + "\n", "a text record": text.String(), "a JSON record": json.String()} {
				if strings.Count(got, "\n") != 1 {
					t.Errorf("%s is not one line: %q", what, got)
				}
				for _, r := range strings.TrimSuffix(got, "\n") {
					if !unicode.IsPrint(r) {
						t.Errorf("%s has %U: %q", what, r, got)
						break
					}
				}
				if len(got) > 8<<10 {
					t.Errorf("%s has %d bytes", what, len(got))
				}
			}
			for _, a := range s.err.LogValue().Group() {
				if v := a.Value.String(); strings.ContainsAny(v, "\n\r\x00\x1b\u202e\u2028") || len(v) > 4<<10 {
					t.Errorf("%s is %q", a.Key, v)
				}
			}
		})
	}
}
