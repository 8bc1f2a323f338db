// Command legation-agent runs beside workloads: it attests this node and its
// programs, keeps their identities, and puts an Envoy in their path.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"

	"github.com/legation-io/legation/internal/agent"
	"github.com/legation-io/legation/internal/agent/run"
	_ "github.com/legation-io/legation/sdk/aes256gcm" // all TLS 1.3 of this process
)

func main() {
	if len(os.Args) > 3 && os.Args[1] == run.StubCommand {
		os.Exit(run.Stub(os.Args[2], os.Args[3:]))
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	code := agent.Main(ctx, stop)
	stop()
	os.Exit(code)
}
