// Command light obtains an SVID by sdk/light and says which; make bench
// measures from its start to that.
package main

import (
	"context"
	"fmt"
	"os"

	"github.com/legation-io/legation/sdk/light"
)

func main() {
	c := light.Config{}
	if len(os.Args) > 1 && os.Args[1] == "sds" {
		c.SDS = &light.SDS{}
	}
	s, sizes, err := light.FetchSizes(context.Background(), c)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	fmt.Println(s.ID, sizes.Wire, sizes.DER, sizes.PEM)
}
