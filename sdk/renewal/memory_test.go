package renewal_test

import (
	"testing"

	"github.com/legation-io/legation/sdk/renewal"
	"github.com/legation-io/legation/sdk/renewal/storetest"
)

func TestMemory(t *testing.T) {
	storetest.Run(t, func(t *testing.T) storetest.Backend {
		m := &renewal.Memory{}
		return storetest.Backend{Store: m, Delete: m.Delete, Apply: func(c *renewal.Certificate) {
			if err := m.Apply(c); err != nil {
				t.Fatal(err)
			}
		}}
	})
}
