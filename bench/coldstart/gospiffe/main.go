// Command gospiffe obtains an SVID by go-spiffe and says which; make bench
// measures from its start to that.
package main

import (
	"context"
	"fmt"
	"os"

	"github.com/spiffe/go-spiffe/v2/workloadapi"
)

func main() {
	source, err := workloadapi.NewX509Source(context.Background())
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	s, err := source.GetX509SVID()
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	fmt.Println(s.ID)
}
