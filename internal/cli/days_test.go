package cli

import (
	"testing"
	"time"
)

func TestADurationMayHaveDays(t *testing.T) {
	for text, want := range map[string]time.Duration{
		"1d": day, "3650d": 3650 * day, "1d12h": 36 * time.Hour, "0d": 0, "90s": 90 * time.Second, "24h": day, "0": 0,
	} {
		var d days
		if err := d.Set(text); err != nil || time.Duration(d) != want {
			t.Errorf("%q is %s, %v; want %s", text, time.Duration(d), err, want)
		}
	}
	for _, text := range []string{"", "d", "-1d", "1.5d", "1d-1h", "-1h", "1dd", "4000000000d", "99999999999999d", "soon", "1 d", "60000d2562047h"} {
		var d days
		if err := d.Set(text); err == nil {
			t.Errorf("%q is %s", text, time.Duration(d))
		}
	}
}
