package cli

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
)

// finding is the outcome of one pre-flight check.
type finding struct {
	Name   string `json:"name"`
	State  string `json:"state"` // ok, warning, error
	Detail string `json:"detail"`
	Fix    string `json:"fix,omitempty"`
}

func checkCommand(o *options) *cobra.Command {
	return &cobra.Command{
		Use: "check",
		Long: `Check looks at this machine before anything is started on it: kernel, pidfds,
clock, locked memory, Envoy, nftables, open files. A warning says what will not
be as good as it could be; an error, what will not work, and ends with 1.`,
		Short: "Pre-flight checks of this machine", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			found := []finding{checkKernel(), checkPeerPidfd(), checkClock(), checkMemlock(), checkEnvoy(cmd.Context()), checkCapture(), checkFiles()}
			t := table{heading: []string{"CHECK", "STATE", "DETAIL", "FIX"}}
			bad := 0
			for _, f := range found {
				t.rows = append(t.rows, []string{f.Name, f.State, f.Detail, dash(f.Fix)})
				t.names = append(t.names, f.Name)
				if f.State == "error" {
					bad++
				}
			}
			if err := o.print(found, t); err != nil {
				return err
			}
			if bad > 0 {
				return fmt.Errorf("%s failed; see FIX above", plural(bad, "check"))
			}
			return nil
		},
	}
}

func checkKernel() finding {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return finding{"kernel", "error", err.Error(), ""}
	}
	release := unix.ByteSliceToString(u.Release[:])
	parts := strings.SplitN(release, ".", 3)
	major, _ := strconv.Atoi(parts[0])
	minor := 0
	if len(parts) > 1 {
		minor, _ = strconv.Atoi(parts[1])
	}
	if major < 5 || major == 5 && minor < 10 {
		return finding{"kernel", "error", release, "5.10 or newer is needed (pidfd_getfd, fexecve re-checks)"}
	}
	return finding{"kernel", "ok", release + " " + runtime.GOARCH, ""}
}

func checkPeerPidfd() finding {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM, 0)
	if err != nil {
		return finding{"peer pidfd", "error", err.Error(), ""}
	}
	defer unix.Close(fds[0])
	defer unix.Close(fds[1])
	fd, err := unix.GetsockoptInt(fds[0], unix.SOL_SOCKET, unix.SO_PEERPIDFD)
	if err != nil {
		return finding{"peer pidfd", "warning", "SO_PEERPIDFD: " + err.Error(), "Linux 6.5 or newer closes the last pid-reuse window; older kernels are re-checked by start time"}
	}
	unix.Close(fd)
	return finding{"peer pidfd", "ok", "callers are held by pidfd", ""}
}

func checkClock() finding {
	now := time.Now()
	if now.Year() < 2025 {
		return finding{"clock", "error", now.Format(time.RFC3339), "set the clock: certificates are judged by it"}
	}
	var tx unix.Timex
	state, err := unix.Adjtimex(&tx)
	if err == nil && state == unix.TIME_ERROR {
		return finding{"clock", "warning", now.UTC().Format(time.RFC3339) + ", not synchronised", "run chrony or systemd-timesyncd; errors over 5 minutes break handshakes"}
	}
	return finding{"clock", "ok", now.UTC().Format(time.RFC3339), ""}
}

func checkMemlock() finding {
	var r unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_MEMLOCK, &r); err != nil {
		return finding{"locked memory", "warning", err.Error(), ""}
	}
	if r.Cur < 1<<20 {
		return finding{"locked memory", "warning", fmt.Sprintf("limit %d bytes", r.Cur), "raise LimitMEMLOCK to 8M, so that key pages cannot be swapped"}
	}
	return finding{"locked memory", "ok", "key pages can be locked", ""}
}

func checkEnvoy(ctx context.Context) finding {
	path := env("LEGATION_ENVOY", "")
	if path == "" {
		found, err := exec.LookPath("envoy")
		if err != nil {
			return finding{"envoy", "warning", "not found", "set LEGATION_ENVOY or put envoy on PATH; only sessions with an Envoy need it"}
		}
		path = found
	}
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	out, err := exec.CommandContext(ctx, path, "--version").Output()
	if err != nil {
		return finding{"envoy", "error", path + ": " + err.Error(), "is it executable on this machine?"}
	}
	for _, field := range strings.Split(string(out), "/") {
		if len(field) > 2 && field[0] >= '0' && field[0] <= '9' && strings.Count(field, ".") == 2 {
			return finding{"envoy", "ok", field + " at " + path, ""}
		}
	}
	return finding{"envoy", "warning", strings.TrimSpace(string(out)), ""}
}

func checkCapture() finding {
	if os.Geteuid() != 0 {
		return finding{"capture", "warning", "not root", "transparent capture needs root in a network namespace; explicit ports work for anyone"}
	}
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW, unix.NETLINK_NETFILTER)
	if err != nil {
		return finding{"capture", "warning", "nftables: " + err.Error(), "load nf_tables, or use explicit ports"}
	}
	unix.Close(fd)
	return finding{"capture", "ok", "nftables can be reached", ""}
}

func checkFiles() finding {
	var r unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &r); err != nil || r.Cur >= 4096 {
		return finding{"open files", "ok", fmt.Sprintf("limit %d", r.Cur), ""}
	}
	return finding{"open files", "warning", fmt.Sprintf("limit %d", r.Cur), "raise LimitNOFILE to 65536"}
}
