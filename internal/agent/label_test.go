package agent

import (
	"bytes"
	"strings"
	"testing"
)

func TestSamplesGetTheirSessionAsALabel(t *testing.T) {
	for _, tt := range []struct{ name, in, want string }{
		{"a sample without labels", "up 1\n", "up{session=\"ab\"} 1\n"},
		{"a sample with labels", "up{a=\"b c\"} 1\n", "up{session=\"ab\",a=\"b c\"} 1\n"},
		{"an empty set of labels", "up{} 1\n", "up{session=\"ab\"} 1\n"},
		{"comments are left out", "# TYPE up gauge\nup 1\n", "up{session=\"ab\"} 1\n"},
		{"a line that ends within its labels", "up{\n", "up{session=\"ab\",\n"},
		{"a line that is no sample", "up\n", ""},
		{"empty lines", "\n\n", ""},
		{"a last line without an end", "up 1\ndown", "up{session=\"ab\"} 1\n"},
		{"a line longer than any sample", strings.Repeat("x", maxSample) + " 1\nup 1\n", "up{session=\"ab\"} 1\n"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			for _, size := range []int{1, 3, len(tt.in)} { // however it arrives
				var out bytes.Buffer
				w := labelled(&out, "ab")
				for rest := tt.in; rest != ""; {
					n := min(size, len(rest))
					if wrote, err := w.Write([]byte(rest[:n])); err != nil || wrote != n {
						t.Fatalf("wrote %d of %d: %v", wrote, n, err)
					}
					rest = rest[n:]
				}
				if out.String() != tt.want {
					t.Errorf("in pieces of %d: %.80q, want %.80q", size, out.String(), tt.want)
				}
			}
		})
	}
}

func FuzzLabel(f *testing.F) {
	f.Add([]byte("up{a=\"b\"} 1\n# x\nup 2\n{\n"))
	f.Fuzz(func(t *testing.T, in []byte) {
		var out bytes.Buffer
		if n, err := labelled(&out, "ab").Write(in); err != nil || n != len(in) {
			t.Fatalf("%d of %d: %v", n, len(in), err)
		}
		for line := range bytes.Lines(out.Bytes()) {
			if !bytes.Contains(line, []byte(`session="ab"`)) {
				t.Fatalf("%q has no label", line)
			}
		}
	})
}
