//go:build !unix

package acmecert

import (
	"context"
	"errors"
)

var errNoLocks = errors.New("a Folder needs flock(2), which this system does not have: use another Storage")

// Lock implements Storage; it always fails here.
func (f *Folder) Lock(context.Context, string) error { return errNoLocks }

// Unlock implements Storage; it always fails here.
func (f *Folder) Unlock(context.Context, string) error { return errNoLocks }
