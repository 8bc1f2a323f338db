package configfile

import (
	"errors"
	"net"
	"strings"
	"syscall"

	"github.com/legation-io/legation/internal/fault"
)

// Listen listens at the TCP address that a key has; nil without one. Errors
// name the key, and its flag.
func Listen(key, address string) (net.Listener, error) {
	if address == "" {
		return nil, nil
	}
	l, err := net.Listen("tcp", address)
	if errors.Is(err, syscall.EADDRINUSE) {
		return nil, fault.New(fault.Invalid, "%s: %w\ntry: see which program has it (ss -ltnp) and end it, or choose another address with --%s", key, err, strings.ReplaceAll(key, ".", "-"))
	}
	if err != nil {
		return nil, fault.New(fault.Invalid, "%s: %w", key, err)
	}
	return l, nil
}
