package envoytest

import (
	"strings"
	"testing"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestStartAnswersAndIsGoneAfterKill(t *testing.T) {
	e := Start(t, `
static_resources:
  listeners:
  - name: echo
    address: {socket_address: {address: 127.0.0.1, port_value: 0}}
    filter_chains:
    - filters:
      - name: envoy.filters.network.echo
        typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.network.echo.v3.Echo}
`, Options{})
	if got := e.Admin("/server_info"); !strings.Contains(got, "LIVE") {
		t.Errorf("server_info says %s", got)
	}
	if n, ok := e.Stat("server.live"); !ok || n != 1 {
		t.Errorf("server.live is %d, %v", n, ok)
	}
	if addr := e.ListenerAddr("echo"); !strings.HasPrefix(addr, "127.0.0.1:") {
		t.Errorf("the listener is at %q", addr)
	}
	e.Kill()
	select {
	case <-e.Exited():
	default:
		t.Error("killed and still there")
	}
}
