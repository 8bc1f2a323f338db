package store

import "github.com/legation-io/legation/internal/fault"

// ConflictError is what every backend's Commit returns for a condition that
// does not hold; have is the key's revision, 0 if it is absent.
func ConflictError(c Cond, have int64) error {
	switch {
	case c.Revision == 0:
		return fault.New(fault.Conflict, "%s exists already, since revision %d", c.Key, have)
	case have == 0:
		return fault.New(fault.Conflict, "%s is gone; it was expected at revision %d", c.Key, c.Revision)
	}
	return fault.New(fault.Conflict, "%s was changed at revision %d; it was expected at revision %d", c.Key, have, c.Revision)
}
