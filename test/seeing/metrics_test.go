package seeing

import (
	"errors"
	"fmt"
	"net"
	"net/http"
	"regexp"
	"strings"
	"testing"

	"github.com/legation-io/legation/test/stand"
)

func TestMetricsAreTheDocumentedOnes(t *testing.T) {
	s := stand.New(t)
	a := s.Agent("node-1")
	s.Apply(entry("sleeper", "node-1", "unix:path:/usr/bin/sleep") + entry("other", "node-1", "unix:uid:1"))
	inbound := stand.FreeAddr(t)
	run(t, s, a, "--inbound", inbound+"=127.0.0.1:9")
	stand.Until(t, "a handshake is refused and counted, and what is served was looked at", func() error {
		conn, err := net.Dial("tcp", inbound)
		if err != nil {
			return err
		}
		fmt.Fprint(conn, "GET / HTTP/1.0\r\n\r\n")
		conn.Close()
		got := families(t, a.Metrics)
		if families(t, s.Metrics)["legation_push_seconds"] == "" {
			return errors.New("no legation_push_seconds")
		}
		for _, want := range []string{"legation_proxy_handshakes_total", "legation_served_certificate_expiry_seconds"} {
			if got[want] == "" {
				return fmt.Errorf("no %s", want)
			}
		}
		return nil
	})
	s.Must("revoke", "spiffe://example.org/ns/default/sa/other", "--wait", "1s")

	code, text, err := get(a.Metrics, "/metrics/envoy?filter=server.live|downstream_cx_total")
	if err != nil || code != http.StatusOK || !regexp.MustCompile(`(?m)^envoy_server_live\{session="[0-9a-f]{12}"\} 1$`).MatchString(text) {
		t.Errorf("the Envoys' own statistics: %d %v\n%s", code, err, text)
	}

	docs, source := documented(t), inSource(t)
	for _, program := range []struct{ name, addr string }{{"legation", s.Metrics}, {"legation-agent", a.Metrics}} {
		got := families(t, program.addr)
		if len(got) < 15 {
			t.Errorf("%s tells only %d metrics", program.name, len(got))
		}
		for name, typ := range got {
			switch docs[name] {
			case typ:
			case "":
				t.Errorf("%s tells %s (%s), which docs/metrics.md does not list", program.name, name, typ)
			default:
				t.Errorf("%s is a %s in %s and a %s in docs/metrics.md", name, typ, program.name, docs[name])
			}
		}
	}
	for name := range docs {
		if source[name] == "" {
			t.Errorf("docs/metrics.md lists %s, which nothing registers", name)
		}
	}
	for name, path := range source {
		if docs[name] == "" {
			t.Errorf("%s registers %s, which docs/metrics.md does not list", path, name)
		}
	}
	unit := regexp.MustCompile(`_(seconds|bytes|total)$`)
	for name, typ := range docs {
		if (typ == "counter") != strings.HasSuffix(name, "_total") {
			t.Errorf("%s is a %s: counters, and only they, end in _total", name, typ)
		}
		if strings.Contains(name, "milli") || strings.Contains(name, "_ms") || strings.HasSuffix(name, "duration") {
			t.Errorf("%s is not in base units", name)
		}
		if typ == "histogram" && !unit.MatchString(name) && !strings.HasSuffix(name, "_size") && !strings.HasSuffix(name, "_records") {
			t.Errorf("histogram %s names no unit", name)
		}
	}
}
