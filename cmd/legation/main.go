// Command legation is the control plane and its command line.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"

	"github.com/legation-io/legation/internal/cli"
	"github.com/legation-io/legation/internal/server"
	_ "github.com/legation-io/legation/sdk/aes256gcm" // all TLS 1.3 of this process
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	code := cli.Main(ctx, cli.New(server.Command()))
	stop()
	os.Exit(code)
}
