package etcd

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"

	"go.uber.org/zap"
)

// Some tests need a process of their own: to be killed, or to have a small
// disk. The test binary is then run again as one of these.
var children = map[string]func(ctx context.Context, dir string) error{
	"commit until killed":    childCommits,
	"hold":                   childHolds,
	"die while it begins":    childBegins,
	"full disk":              childFullDisk,
	"disk full under writes": childDiskFails,
}

func TestMain(m *testing.M) {
	if name := os.Getenv("LEGATION_TEST_CHILD"); name != "" {
		dir := os.Getenv("LEGATION_TEST_DIR")
		if size := os.Getenv("LEGATION_TEST_DISK"); size != "" {
			if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size="+size); err != nil {
				fmt.Println("mount a small disk:", err)
				os.Exit(1)
			}
		}
		if err := children[name](context.Background(), dir); err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	leakTestMain(m)
}

func child(t *testing.T, name, dir string) *exec.Cmd {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), "LEGATION_TEST_CHILD="+name, "LEGATION_TEST_DIR="+dir)
	cmd.Stderr = os.Stderr
	return cmd
}

// onSmallDisk runs a child with a tmpfs of that size on dir, in a mount
// namespace of its own; without root in a user namespace of its own too.
func onSmallDisk(t *testing.T, name, size string) {
	t.Helper()
	cmd := child(t, name, t.TempDir())
	cmd.Env = append(cmd.Env, "LEGATION_TEST_DISK="+size)
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNS}
	if os.Getuid() != 0 {
		cmd.SysProcAttr.Cloneflags |= syscall.CLONE_NEWUSER
		cmd.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}}
	}
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	t.Logf("%s", out)
}

// childHolds keeps the directory open until its input ends.
func childHolds(ctx context.Context, dir string) error {
	s, err := Open(ctx, Config{Dir: dir})
	if err != nil {
		return err
	}
	fmt.Println("open")
	_, _ = bufio.NewReader(os.Stdin).ReadString('\n')
	return s.Close()
}

func readLine(t *testing.T, r *bufio.Reader) string {
	t.Helper()
	line, err := r.ReadString('\n')
	if err != nil {
		t.Fatalf("the child said %q and ended: %v", line, err)
	}
	return strings.TrimSpace(line)
}

// childBegins ends where the files are made and nothing is committed yet.
func childBegins(_ context.Context, dir string) error {
	if err := makeDirs(dir); err != nil {
		return err
	}
	_, err := newServer(Config{Dir: dir, snapEvery: 10}, zap.NewNop())
	return err
}
