package envoy

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/legation-io/legation/internal/fault"
)

// The range of Envoy versions that our configuration was tried on:
// MajorVersion.MinMinor up to and including MajorVersion.MaxMinor.
const (
	MajorVersion = 1
	MinMinor     = 38
	MaxMinor     = 40
	// SupportedRange is the same for people.
	SupportedRange = "1.38 to 1.40"
)

// EnvBinary names the environment variable with the path of the binary.
const EnvBinary = "LEGATION_ENVOY"

// Find returns the path of Envoy's binary: what is configured, else
// $LEGATION_ENVOY, else "envoy" in $PATH. The first that is given decides: a
// configured path that does not exist is fault.Invalid and no other is
// tried. None at all is fault.NotFound.
func Find(configured string) (string, error) {
	for _, from := range []struct{ path, source string }{
		{configured, "the configured path"}, {os.Getenv(EnvBinary), "$" + EnvBinary},
	} {
		if from.path == "" {
			continue
		}
		path, err := filepath.Abs(from.path)
		if err != nil {
			return "", fault.New(fault.Invalid, "Envoy at %q (%s): %w", from.path, from.source, err)
		}
		info, err := os.Stat(path)
		if err != nil {
			return "", fault.New(fault.Invalid, "Envoy at %s (%s): %w; correct the path or leave it out to search $PATH", path, from.source, err)
		}
		if info.IsDir() || info.Mode()&0o111 == 0 {
			return "", fault.New(fault.Invalid, "Envoy at %s (%s) is not an executable file", path, from.source)
		}
		return path, nil
	}
	path, err := exec.LookPath("envoy")
	if err != nil {
		return "", fault.New(fault.NotFound, "no Envoy: set its path in the configuration or in $%s, or put envoy (%s) into $PATH", EnvBinary, SupportedRange)
	}
	return filepath.Abs(path)
}

// envoy  version: <commit>/1.40.0/Clean/RELEASE/BoringSSL
var versionLine = regexp.MustCompile(`version: [0-9a-f]*/(\d+)\.(\d+)\.(\d+)(-[0-9A-Za-z.]+)?/`)

// Version asks the binary for its version, e.g. "1.40.0", and refuses
// (fault.Invalid) one outside SupportedRange: an older Envoy refuses parts of
// our configuration, a newer one is untried.
func Version(ctx context.Context, binary string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	out, err := exec.CommandContext(ctx, binary, "--version").Output()
	if err != nil {
		var exit *exec.ExitError
		if errors.As(err, &exit) {
			return "", fault.New(fault.Invalid, "%s --version: %w: %s", binary, err, strings.TrimSpace(string(exit.Stderr)))
		}
		return "", fault.New(fault.Invalid, "%s --version: %w", binary, err)
	}
	return parseVersion(binary, string(out))
}

func parseVersion(binary, out string) (string, error) {
	m := versionLine.FindStringSubmatch(out)
	if m == nil {
		return "", fault.New(fault.Invalid, "%s is no Envoy: --version says %q", binary, strings.TrimSpace(out[:min(len(out), 200)]))
	}
	major, errMajor := strconv.Atoi(m[1])
	minor, errMinor := strconv.Atoi(m[2])
	version := m[1] + "." + m[2] + "." + m[3] + m[4]
	if errMajor != nil || errMinor != nil || major != MajorVersion || minor < MinMinor || minor > MaxMinor {
		return version, fault.New(fault.Invalid, "%s is Envoy %s; this agent supports %s", binary, version, SupportedRange)
	}
	return version, nil
}
