package server

import (
	"strings"
	"testing"

	"github.com/legation-io/legation/internal/fault"
	"github.com/legation-io/legation/internal/store/memory"
)

func TestDataOfAnotherTrustDomainIsRefused(t *testing.T) {
	s := memory.New()
	defer s.Close()
	for range 2 {
		if err := openTrustDomain(t.Context(), s, "example.org"); err != nil {
			t.Fatal(err)
		}
	}
	err := openTrustDomain(t.Context(), s, "other.org")
	if !fault.Is(err, fault.Invalid) || !strings.Contains(err.Error(), "is of example.org, not other.org") {
		t.Errorf("%v", err)
	}
}
