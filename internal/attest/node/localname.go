package node

import (
	"strings"

	"github.com/legation-io/legation/internal/fault"
)

// MaxLocalNames bounds the DNS names of one agent's certificate.
const MaxLocalNames = 8

// CheckLocalNames refuses DNS names that an agent's certificate may not have.
// It serves programs on its own machine over loopback, so the names are
// localhost and those below .localhost, which never lead anywhere else
// (RFC 6761 6.3): no node can pose as another machine by them.
func CheckLocalNames(names []string) error {
	if len(names) > MaxLocalNames {
		return fault.New(fault.Invalid, "%d DNS names for an agent: at most %d", len(names), MaxLocalNames)
	}
	for _, n := range names {
		if n != "localhost" && (!strings.HasSuffix(n, ".localhost") || len(n) > 253) {
			return fault.New(fault.Denied, "%.300q is not a name an agent may have: write localhost, or a name that ends in .localhost", n)
		}
	}
	return nil
}
