package envoy

import (
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/bootstrap/internal_listener/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/resource_monitors/downstream_connections/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/upstreams/http/v3"

	"bytes"
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"

	bootstrapv3 "github.com/envoyproxy/go-control-plane/envoy/config/bootstrap/v3"
	"google.golang.org/protobuf/encoding/protojson"

	"github.com/legation-io/legation/internal/agent/envoy/envoytest"
	"github.com/legation-io/legation/internal/fault"
)

func TestBootstrapHoldsNoSecretAndOnlyUnixSockets(t *testing.T) {
	body, err := Bootstrap(BootstrapParams{NodeID: "n", Socket: "/run/s.sock", AdminSocket: "/run/a.sock"})
	if err != nil {
		t.Fatal(err)
	}
	var b bootstrapv3.Bootstrap
	if err := protojson.Unmarshal(body, &b); err != nil {
		t.Fatal(err)
	}
	for _, word := range []string{"socket_address", "socketAddress", "private", "password", "token", "key\""} {
		if bytes.Contains(body, []byte(word)) {
			t.Errorf("the bootstrap contains %s", word)
		}
	}
	if mode := b.GetAdmin().GetAddress().GetPipe().GetMode(); mode != 0o600 {
		t.Errorf("A24: admin socket mode %o", mode)
	}
	if !b.GetDynamicResources().GetAdsConfig().GetSetNodeOnFirstMessageOnly() {
		t.Error("the node is sent with every request")
	}
}

func TestBootstrapRefusesWhatEnvoyWouldNotTake(t *testing.T) {
	good := BootstrapParams{NodeID: "n", Socket: "/run/s.sock", AdminSocket: "/run/a.sock"}
	for _, row := range []struct {
		name   string
		change func(*BootstrapParams)
		words  string
	}{
		{"no node id", func(p *BootstrapParams) { p.NodeID = "" }, "node id"},
		{"no socket", func(p *BootstrapParams) { p.Socket = "" }, "session socket"},
		{"a relative admin socket", func(p *BootstrapParams) { p.AdminSocket = "a.sock" }, "admin socket"},
		{"a path longer than a socket address", func(p *BootstrapParams) { p.Socket = "/" + strings.Repeat("x", 107) }, "107 bytes"},
	} {
		t.Run(row.name, func(t *testing.T) {
			p := good
			row.change(&p)
			if _, err := Bootstrap(p); fault.KindOf(err) != fault.Invalid || !strings.Contains(err.Error(), row.words) {
				t.Errorf("error %v", err)
			}
		})
	}
}

func TestTheVersionMustBeInRange(t *testing.T) {
	if v, err := Version(context.Background(), envoytest.Binary(t)); err != nil || v != "1.40.0" {
		t.Errorf("the pinned Envoy: %q, %v", v, err)
	}
	for _, row := range []struct{ name, out, version, words string }{
		{"the oldest", "envoy  version: abc/1.38.0/Clean/RELEASE/BoringSSL", "1.38.0", ""},
		{"a patch release", "envoy  version: abc/1.39.7/Clean/RELEASE/BoringSSL", "1.39.7", ""},
		{"too old", "envoy  version: abc/1.37.9/Clean/RELEASE/BoringSSL", "1.37.9", "supports 1.38 to 1.40"},
		{"too new", "envoy  version: abc/1.41.0-dev/Clean/RELEASE/BoringSSL", "1.41.0-dev", "supports 1.38 to 1.40"},
		{"another major", "envoy  version: abc/2.39.0/Clean/RELEASE/BoringSSL", "2.39.0", "supports 1.38 to 1.40"},
		{"another program", "GNU envoy 3", "", "is no Envoy"},
	} {
		t.Run(row.name, func(t *testing.T) {
			v, err := parseVersion("envoy", row.out)
			if v != row.version || (err == nil) != (row.words == "") || err != nil && !strings.Contains(err.Error(), row.words) {
				t.Errorf("%q, %v", v, err)
			}
		})
	}
	if _, err := Version(context.Background(), "/bin/false"); fault.KindOf(err) != fault.Invalid {
		t.Errorf("/bin/false: %v", err)
	}
}

func TestFindTakesTheFirstThatIsGiven(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{"mine", "env", "envoy"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte("#!/bin/sh\n"), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	t.Setenv("PATH", dir)
	t.Setenv(EnvBinary, "")
	if p, err := Find(""); err != nil || p != filepath.Join(dir, "envoy") {
		t.Errorf("from $PATH: %q, %v", p, err)
	}
	t.Setenv(EnvBinary, filepath.Join(dir, "env"))
	if p, err := Find(""); err != nil || p != filepath.Join(dir, "env") {
		t.Errorf("from the environment: %q, %v", p, err)
	}
	if p, err := Find(filepath.Join(dir, "mine")); err != nil || p != filepath.Join(dir, "mine") {
		t.Errorf("configured: %q, %v", p, err)
	}
	if _, err := Find(filepath.Join(dir, "none")); fault.KindOf(err) != fault.Invalid {
		t.Errorf("a configured path that is not there: %v", err)
	}
	if _, err := Find(dir); fault.KindOf(err) != fault.Invalid {
		t.Errorf("a directory: %v", err)
	}
	t.Setenv(EnvBinary, "")
	t.Setenv("PATH", "")
	if _, err := Find(""); fault.KindOf(err) != fault.NotFound {
		t.Errorf("none: %v", err)
	}
}
