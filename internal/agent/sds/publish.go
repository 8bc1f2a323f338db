package sds

import (
	"context"

	"github.com/legation-io/legation/internal/agent/svid"
	"github.com/legation-io/legation/internal/distribute"
)

// Publish keeps the scope in step with a stream of updates: each replaces the
// scope's content in one step, and what did not change is not sent again. next
// waits for an Update that follows the one it returned before; its error ends
// Publish, which empties the scope and returns that error, or nil when ctx
// has ended.
func Publish(ctx context.Context, e *distribute.Engine, scope distribute.Scope, next func(context.Context) (*svid.Update, error), names SecretNames) error {
	defer e.Drop(scope)
	for {
		u, err := next(ctx)
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return err
		}
		e.Replace(scope, Secrets(u, names))
	}
}
