package commandline

import (
	"bytes"
	"errors"
	"strings"
	"testing"

	"github.com/legation-io/legation/internal/fault"
	"github.com/spf13/cobra"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

func tree() *cobra.Command {
	root := &cobra.Command{Use: "prog"}
	run := func(*cobra.Command, []string) error { return nil }
	noun := &cobra.Command{Use: "node", Short: "nodes"}
	noun.AddCommand(&cobra.Command{Use: "show NAME", Args: cobra.ExactArgs(1), RunE: run}, &cobra.Command{Use: "list", Args: cobra.NoArgs, RunE: run})
	apply := &cobra.Command{Use: "apply -f FILE", Args: cobra.NoArgs, RunE: run}
	apply.Flags().StringP("filename", "f", "", "")
	apply.Flags().Int("limit", 1, "")
	_ = apply.MarkFlagRequired("filename")
	root.AddCommand(noun, apply)
	Strict(root)
	return root
}

func TestWhatIsTypedWrongSaysWhatToType(t *testing.T) {
	for _, tt := range []struct {
		name, args string
		want       []string // "" accepts
	}{
		{"a command that is there", "node list", nil},
		{"no command shows the help", "", nil},
		{"a noun alone shows its help", "node", nil},
		{"an unknown command names the nearest", "nodes", []string{`"nodes" is no command; did you mean "prog node"?`, "try: prog --help"}},
		{"an unknown command under a noun is no help page", "node frob", []string{`"frob" is no command`, "try: prog node --help"}},
		{"an argument is missing", "node show", []string{"an argument is missing; write: prog node show NAME", "try: prog node show --help"}},
		{"too many arguments", "node show a b", []string{"2 arguments are too many"}},
		{"an argument where none is expected", "node list web-1", []string{`"web-1" is not expected here; write: prog node list`}},
		{"a flag is missing", "apply", []string{"-f is missing; write: prog apply -f FILE"}},
		{"an unknown flag", "apply -f x --frob", []string{"unknown flag: --frob", "try: prog apply --help"}},
		{"a value of the wrong kind", "apply -f x --limit many", []string{`"many"`, "--limit", "try: prog apply --help"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			root := tree()
			root.SetArgs(strings.Fields(tt.args))
			root.SetOut(&bytes.Buffer{})
			err := root.Execute()
			var talk bytes.Buffer
			code := Report(&talk, "prog", err)
			if tt.want == nil {
				if err != nil || code != 0 {
					t.Fatalf("exit %d: %v", code, err)
				}
				return
			}
			if code != 2 {
				t.Errorf("exit %d, want 2", code)
			}
			for _, w := range tt.want {
				if !strings.Contains(talk.String(), w) {
					t.Errorf("%q does not say %q", talk.String(), w)
				}
			}
		})
	}
}

func TestExitCodes(t *testing.T) {
	for _, tt := range []struct {
		name string
		err  error
		code int
		says string
	}{
		{"done", nil, 0, ""},
		{"wrong input", fault.New(fault.Invalid, "line 3"), 2, "prog: line 3\n"},
		{"not there", fault.New(fault.NotFound, "no node x"), 1, "prog: no node x\n"},
		{"anything else", errors.New("broken"), 1, "prog: broken\n"},
		{"wrong input, told by a server", status.Error(codes.InvalidArgument, "bad serial"), 2, "prog: bad serial\n"},
		{"refused by a server", status.Error(codes.PermissionDenied, "no role"), 1, "prog: no role\n"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var talk bytes.Buffer
			if code := Report(&talk, "prog", tt.err); code != tt.code || talk.String() != tt.says {
				t.Errorf("exit %d, %q; want %d, %q", code, talk.String(), tt.code, tt.says)
			}
		})
	}
}
