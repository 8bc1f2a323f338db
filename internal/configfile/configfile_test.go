package configfile

import (
	"strings"
	"testing"
	"time"
)

type sample struct {
	TrustDomain string   `yaml:"trustDomain"`
	Wait        Duration `yaml:"wait"`
	Log         struct {
		Level string `yaml:"level"`
	} `yaml:"log"`
}

func TestParse(t *testing.T) {
	for _, tt := range []struct {
		name, in string
		want     []string
	}{
		{"an empty file is the defaults", "", nil},
		{"known keys are read", "trustDomain: a.org\nwait: 90s\n", nil},
		{"an unknown key names its line and the nearest key", "trustdomian: a.org\n", []string{"f.yaml: line 1", `did you mean "trustDomain"?`}},
		{"all mistakes are told at once", "x: 1\nlog:\n  levl: a\n", []string{"line 1", "line 3", `"level"`}},
		{"a bad duration says what to write", "wait: 5 minutes\n", []string{"line 1", "15m"}},
		{"a second document is refused", "wait: 1s\n---\nwait: 2s\n", []string{"second document"}},
		{"broken YAML names its line", "a: [\n", []string{"line"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var s sample
			err := Parse("f.yaml", []byte(tt.in), &s)
			if len(tt.want) == 0 {
				if err != nil {
					t.Fatal(err)
				}
				return
			}
			if err == nil {
				t.Fatal("accepted")
			}
			for _, w := range tt.want {
				if !strings.Contains(err.Error(), w) {
					t.Errorf("error %q does not say %q", err, w)
				}
			}
		})
	}
	var s sample
	if err := Parse("f", []byte("wait: 1h30m\n"), &s); err != nil || time.Duration(s.Wait) != 90*time.Minute {
		t.Fatalf("wait = %v, %v", time.Duration(s.Wait), err)
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte("trustDomain: a\nlog: {level: x}\n"))
	f.Fuzz(func(_ *testing.T, raw []byte) {
		var s sample
		_ = Parse("f", raw, &s)
	})
}
