// Package e2e proves the whole system: the real binaries, real Envoys, real
// kills, on one machine.
package e2e

import (
	"os"
	"testing"

	"github.com/legation-io/legation/test/e2e/world"
)

func TestMain(m *testing.M) { os.Exit(world.Run(m)) }
