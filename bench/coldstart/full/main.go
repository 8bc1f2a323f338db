// Command full obtains an SVID by sdk/workloadapi and says which; make bench
// measures from its start to that.
package main

import (
	"context"
	"fmt"
	"log/slog"
	"os"

	"github.com/legation-io/legation/sdk/workloadapi"
)

func main() {
	source, err := workloadapi.Open(context.Background(), workloadapi.Config{Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	s, _, err := source.Current()
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	fmt.Println(s.ID)
}
