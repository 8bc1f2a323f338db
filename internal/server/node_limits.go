package server

import (
	"github.com/legation-io/legation/internal/limit"
	"github.com/legation-io/legation/internal/server/node"
)

// nodeLimits are the door's limits as configured; bursts let a node that
// starts ask for everything it has at once.
func nodeLimits(l Limits) node.Limits {
	return node.Limits{
		AttestationsPerIP: limit.Rate{PerSecond: float64(l.AttestationsPerMinute) / 60, Burst: max(l.AttestationsPerMinute, 10)},
		CSRsPerNode:       limit.Rate{PerSecond: float64(l.CSRsPerSecond), Burst: max(l.CSRsPerSecond, l.EntriesPerNode)},
		StreamsPerNode:    l.StreamsPerNode,
	}
}
