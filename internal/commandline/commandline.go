// Package commandline is what the two programs' command lines share: a mistake
// in what was typed is named together with what to type instead, and every
// command ends with 0 when it did what was asked, 2 when what was typed or
// declared is wrong, and 1 when anything else stood in the way.
package commandline

import (
	"fmt"
	"io"
	"strings"

	"github.com/legation-io/legation/internal/fault"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"google.golang.org/grpc/status"
)

// Strict makes every mistake in what is typed a fault.Invalid that ends with
// the next thing to try: unknown commands and flags, wrong numbers of
// arguments, missing flags. Call it when the tree is complete.
func Strict(c *cobra.Command) {
	c.SilenceUsage, c.SilenceErrors = true, true
	c.SetFlagErrorFunc(func(c *cobra.Command, err error) error { return mistake(c, "%v", err) })
	if c.HasSubCommands() && !c.Runnable() {
		c.DisableFlagsInUseLine = true
		c.SuggestionsMinimumDistance = 2
		c.Args = cobra.ArbitraryArgs
		c.RunE = func(c *cobra.Command, args []string) error {
			if len(args) == 0 {
				return c.Help()
			}
			if near := c.SuggestionsFor(args[0]); len(near) > 0 {
				return mistake(c, "%q is no command; did you mean %q?", args[0], c.CommandPath()+" "+near[0])
			}
			return mistake(c, "%q is no command", args[0])
		}
	} else if c.Runnable() {
		check := c.Args
		c.Args = func(c *cobra.Command, args []string) error {
			if check != nil {
				if err := check(c, args); err != nil {
					return mistake(c, "%s; write: %s", argumentError(err, args), c.UseLine())
				}
			}
			return required(c)
		}
	}
	for _, sub := range c.Commands() {
		Strict(sub)
	}
}

// Version is the command that says what --version says.
func Version() *cobra.Command {
	return &cobra.Command{
		Use: "version", Short: "Which build this is", Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			_, err := fmt.Fprintf(c.OutOrStdout(), "%s version %s\n", c.Root().Name(), c.Root().Version)
			return err
		},
	}
}

func mistake(c *cobra.Command, format string, args ...any) error {
	return fault.New(fault.Invalid, "%s\ntry: %s --help", fmt.Sprintf(format, args...), c.CommandPath())
}

// argumentError says cobra's sentence about counts in words.
func argumentError(err error, args []string) string {
	text := err.Error()
	switch {
	case strings.HasPrefix(text, "unknown command"): // cobra.NoArgs
		return fmt.Sprintf("%q is not expected here", args[0])
	case len(args) == 0:
		return "an argument is missing"
	case strings.Contains(text, "accepts "):
		return fmt.Sprintf("%d arguments are too many", len(args))
	}
	return text
}

// required names flags that are missing before cobra does.
func required(c *cobra.Command) error {
	var missing []string
	c.Flags().VisitAll(func(f *pflag.Flag) {
		if needed := f.Annotations[cobra.BashCompOneRequiredFlag]; len(needed) == 1 && needed[0] == "true" && !f.Changed {
			name := "--" + f.Name
			if f.Shorthand != "" {
				name = "-" + f.Shorthand
			}
			missing = append(missing, name)
		}
	})
	if len(missing) == 0 {
		return nil
	}
	return mistake(c, "%s is missing; write: %s", strings.Join(missing, " and "), c.UseLine())
}

// Report writes err for people and returns the exit code.
func Report(w io.Writer, program string, err error) int {
	if err == nil {
		return 0
	}
	fmt.Fprintf(w, "%s: %s\n", program, Plain(err))
	return fault.ExitCode(err)
}

// Plain drops gRPC's frame around a message that was written for people.
func Plain(err error) string {
	if s, ok := status.FromError(err); ok {
		return s.Message()
	}
	return err.Error()
}
