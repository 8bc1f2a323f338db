package run

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/legation-io/legation/internal/fault"
)

func TestAUserIsNameOrNumbers(t *testing.T) {
	for spec, want := range map[string]string{
		"root":        "0:0 [0] [HOME=/root USER=root LOGNAME=root]",
		"0:7":         "0:7 [] [HOME=/root USER=root LOGNAME=root]",
		"65001":       "65001:65001 [] []",
		"65001:65002": "65001:65002 [] []",
		"nobody":      "65534:65534 [65534] [HOME=/nonexistent USER=nobody LOGNAME=nobody]",
		"65534":       "65534:65534 [65534] [HOME=/nonexistent USER=nobody LOGNAME=nobody]",
		"nosuchuser":  "invalid",
		"65001:staff": "invalid",
		"4294967295":  "invalid", // the kernel takes it for "leave it"
		"-1":          "invalid",
		":":           "invalid",
	} {
		t.Run(spec, func(t *testing.T) {
			a, err := lookUp(spec)
			got := "invalid"
			if err == nil {
				got = fmt.Sprintf("%d:%d %v %v", a.credential.Uid, a.credential.Gid, a.credential.Groups, a.env)
			} else if !fault.Is(err, fault.Invalid) {
				t.Errorf("%v", err)
			}
			if got != want {
				t.Errorf("got %s, want %s (%v)", got, want, err)
			}
		})
	}
}

func TestAProgramMayNotRunAsItsProxy(t *testing.T) {
	if os.Geteuid() != 0 {
		o := Options{User: "65001"}
		if _, err := o.account(); !fault.Is(err, fault.Denied) {
			t.Errorf("without root: %v", err)
		}
		return
	}
	for name, row := range map[string]struct {
		o  Options
		ok bool
	}{
		"another user":                       {Options{User: "65001"}, true},
		"the proxy's":                        {Options{User: "1337"}, false},
		"the proxy's, which was given":       {Options{User: "65001", EnvoyUID: 65001}, false},
		"1337 where the proxy has another's": {Options{User: "1337", EnvoyUID: 65001}, true},
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := row.o.account(); (err == nil) != row.ok {
				t.Errorf("%v", err)
			}
		})
	}
}

func TestAProgramThatCannotRunExitsAsInAShell(t *testing.T) {
	plain := filepath.Join(t.TempDir(), "plain")
	if err := os.WriteFile(plain, []byte("x"), 0o644); err != nil {
		t.Fatal(err)
	}
	for name, row := range map[string]struct {
		program string
		code    int
	}{
		"no such program":  {"no-such-program-anywhere", 127},
		"no such file":     {filepath.Join(t.TempDir(), "absent"), 127},
		"a file without x": {plain, 126},
		"a folder":         {t.TempDir(), 126},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := resolve([]string{row.program})
			if err == nil || notRun(err) != row.code {
				t.Errorf("%d: %v", notRun(err), err)
			}
		})
	}
}
