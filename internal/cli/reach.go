package cli

import (
	"context"
	"errors"
	"net"
	"os"
	"syscall"
	"time"

	"github.com/legation-io/legation/internal/fault"
)

// reach says in plain words why nobody answers on a socket: gRPC's own words
// tell of transports.
func reach(ctx context.Context, path string) error {
	conn, err := (&net.Dialer{Timeout: 5 * time.Second}).DialContext(ctx, "unix", path)
	switch {
	case err == nil:
		return conn.Close()
	case errors.Is(err, os.ErrPermission):
		return fault.New(fault.Denied, "%s is not yours to use\ntry: run this as the user who started it (its socket is 0600), e.g. with sudo", path)
	case errors.Is(err, syscall.ECONNREFUSED):
		if st, serr := os.Stat(path); serr == nil && st.Mode()&os.ModeSocket == 0 {
			return fault.New(fault.Invalid, "%s is no socket\ntry: name one with --server or --agent", path)
		}
		return fault.New(fault.Unavailable, "nothing listens at %s any more: what did was stopped or killed\ntry: start it again, or name another socket with --server or --agent", path)
	case errors.Is(err, os.ErrNotExist):
		return fault.New(fault.Unavailable, "nothing listens at %s: there is no such socket\ntry: start it, or name another socket with --server or --agent", path)
	}
	return fault.New(fault.Unavailable, "nothing answers at %s (%v)\ntry: start it, or name another socket with --server or --agent", path, err)
}
