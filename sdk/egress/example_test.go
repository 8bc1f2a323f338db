package egress_test

import (
	"context"
	"fmt"
	"net/netip"

	"github.com/legation-io/legation/sdk/egress"
)

func ExampleGuard() {
	guard, err := egress.New(egress.Config{Allow: []netip.Prefix{netip.MustParsePrefix("10.20.0.0/16")}})
	if err != nil {
		panic(err)
	}
	_, err = guard.DialContext(context.Background(), "tcp", "169.254.169.254:80")
	fmt.Println(err)
	// Output: connecting to "169.254.169.254" at 169.254.169.254 is refused: it is link-local, where metadata services are; allow the network or the host if that is meant
}
