// Package metric registers what several users of one registry share.
package metric

import (
	"errors"
	"fmt"

	"github.com/prometheus/client_golang/prometheus"
)

// Shared returns the metric that r has if it had it before, and else
// registers c; nil registers nothing. The error is of a registry that has
// something else by the name; what is returned then counts where nobody looks.
func Shared[C prometheus.Collector](r prometheus.Registerer, c C) (C, error) {
	if r == nil {
		return c, nil
	}
	err := r.Register(c)
	if before, ok := errors.AsType[prometheus.AlreadyRegisteredError](err); ok {
		if same, ok := before.ExistingCollector.(C); ok {
			return same, nil
		}
	}
	if err != nil {
		return c, fmt.Errorf("register a metric: %w; give this part a Registerer of its own (prometheus.WrapRegistererWithPrefix)", err)
	}
	return c, nil
}
