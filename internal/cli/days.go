package cli

import (
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"
)

// days is a duration that may be written as it is printed: 30d, or 1d12h.
type days time.Duration

const day = 24 * time.Hour

// Set implements pflag.Value.
func (d *days) Set(s string) error {
	whole, rest, found := strings.Cut(s, "d")
	if !found {
		whole, rest = "0", s
	}
	n, err := strconv.ParseUint(whole, 10, 32)
	part := time.Duration(0)
	if err == nil && (rest != "" || !found) {
		part, err = time.ParseDuration(rest)
	}
	if err != nil || part < 0 || n > uint64((math.MaxInt64-part)/day) {
		return fmt.Errorf("%q is not a duration; write e.g. 90s, 15m, 24h or 30d", s)
	}
	*d = days(time.Duration(n)*day + part)
	return nil
}

// String implements pflag.Value.
func (d *days) String() string { return time.Duration(*d).String() }

// Type implements pflag.Value.
func (d *days) Type() string { return "duration" }
