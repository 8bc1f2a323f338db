// Package version names this build.
package version

// Version is set at link time by the Makefile.
var Version = "0.1.0-dev"

// Protocol is the version of the agent protocol spoken by this build; the one
// before is understood too.
const Protocol = 1
