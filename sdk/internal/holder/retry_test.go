package holder_test

import (
	"testing"
	"time"

	"github.com/legation-io/legation/sdk/internal/holder"
)

func TestWaitsStayWithinTheirBounds(t *testing.T) {
	for _, tt := range []struct {
		name      string
		backoff   holder.Backoff
		low, high time.Duration
	}{
		{"those of nothing said", holder.Backoff{}, 50 * time.Millisecond, 10 * time.Second},
		{"the shortest is longer than the longest", holder.Backoff{Min: time.Second, Max: time.Millisecond}, time.Second, time.Second},
		{"a minute and more", holder.Backoff{Min: time.Minute, Max: time.Hour}, time.Minute, time.Hour},
		{"a minute, the longest not said", holder.Backoff{Min: time.Minute}, time.Minute, time.Minute},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := holder.Retry{Backoff: tt.backoff}
			for n := range 100 {
				if n == 50 {
					r.Reset()
				}
				wait := r.Next()
				if wait < tt.low || wait > tt.high {
					t.Fatalf("wait %d is %s", n, wait)
				}
				if n%50 == 0 && wait > 6*tt.low {
					t.Errorf("the first wait is %s", wait)
				}
			}
		})
	}
}
