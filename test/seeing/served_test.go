package seeing

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/legation-io/legation/test/stand"
)

func TestWhatIsPresentedFollowsARotation(t *testing.T) {
	s := stand.New(t)
	a := s.Agent("node-1")
	sleeper := entry("sleeper", "node-1", "unix:path:/usr/bin/sleep")
	s.Apply(sleeper)
	run(t, s, a, "--inbound", stand.FreeAddr(t)+"=127.0.0.1:9")
	presents := func(other string) (serial string) {
		stand.Until(t, "status tells what is presented", func() error {
			out, err := a.Legation("status", "--node", "-o", "json")
			if err != nil {
				return err
			}
			var st struct {
				Identities  []struct{ Serial string }
				Subscribers []struct{ Subscriber, Presents string }
				Problems    []string
			}
			if err := json.Unmarshal([]byte(out), &st); err != nil {
				return err
			}
			if len(st.Identities) != 1 || len(st.Subscribers) != 1 {
				return errors.New(out)
			}
			serial = st.Subscribers[0].Presents
			if want := strings.TrimLeft(st.Identities[0].Serial, "0"); serial == "" || serial == other || serial != want {
				return fmt.Errorf("presents %q, issued %q", serial, want)
			}
			if len(st.Problems) > 0 {
				return fmt.Errorf("%q", st.Problems)
			}
			return nil
		})
		return serial
	}
	first := presents("")
	s.Apply(strings.Replace(sleeper, "spec:\n", "spec:\n  ttl: 2h\n", 1))
	second := presents(first)
	t.Logf("presented %s, after the rotation %s", first, second)
}
