package e2e

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"

	"github.com/legation-io/legation/test/e2e/world"
)

// nobody is an unprivileged user of a node.
const nobody = "65534"

// attack runs the attacker as nobody against a node's agent, and returns what
// it printed.
func attack(n *world.Node, w *world.World, args ...string) string {
	w.Helper()
	r := w.Command(append([]string{"setpriv", "--reuid", nobody, "--regid", nobody, "--clear-groups", world.Tool(w, "attacker"), "--socket", n.Socket}, args...)...)
	if r.Code != 0 {
		w.Fatalf("the attacker could not try: %s%s", r.Stdout, r.Stderr)
	}
	return r.Stdout
}

// A session's folder belongs to its Envoy's user. While the agent, which is
// root, made the session's socket in there, that user could put a link in its
// place: the agent would have given him any file of the machine.
func TestTheAgentGivesNoFileAwayWhileItMakesASession(t *testing.T) {
	t.Parallel()
	w := world.Start(t)
	n := w.Join("n1")
	w.Apply(world.Identity("app", "n1", "unix:uid:"+nobody))
	precious := w.Write("precious", "root's alone", 0o644)
	out := attack(n, w, "--swap", precious, "--run-dir", w.Path("s-n1"), "--tries", "100")
	info, err := os.Stat(precious)
	if err != nil {
		t.Fatal(err)
	}
	if st := info.Sys().(*syscall.Stat_t); st.Uid != 0 || info.Mode().Perm() != 0o644 {
		t.Fatalf("the agent gave a file of root's away: uid %d, mode %o", st.Uid, info.Mode().Perm())
	}
	if got := strings.Count(out, "attested"); got < 100 {
		t.Errorf("%d of 100 sessions came to be:\n%.600s", got, out)
	}
}

// A session gives its opener what the child may have; so the child may be no
// more than the opener is, and what it will execute must be a file that it
// could execute.
func TestASessionGivesItsOpenerNothingOfOthers(t *testing.T) {
	t.Parallel()
	w := world.Start(t)
	n := w.Join("n1")
	sleep, err := os.ReadFile("/bin/sleep")
	if err != nil {
		t.Fatal(err)
	}
	setuid := w.Write("setuid", string(sleep), 0o755|os.ModeSetuid)
	setgid := w.Write("setgid", string(sleep), 0o755|os.ModeSetgid)
	locked := w.Write("locked", string(sleep), 0o700)
	data := w.Write("data", string(sleep), 0o644)
	w.Apply(world.Identity("mine", "n1", "unix:uid:"+nobody, "unix:path:/usr/bin/sleep") +
		world.Identity("root", "n1", "unix:uid:0") + world.Identity("wheel", "n1", "unix:gid:0") +
		world.Identity("locked", "n1", "unix:path:"+locked) + world.Identity("data", "n1", "unix:path:"+data))
	for _, row := range []struct {
		name string
		args []string
		says string
	}{
		{"his own child with a program of everybody's has its identity", []string{"--exec", "/usr/bin/sleep"}, "attested " + world.ID("mine")},
		{"a child that executed a set-uid program is refused", []string{setuid, "60"}, "without sudo or a set-uid bit"},
		{"a child that executed a set-gid program is refused", []string{setgid, "60"}, "without a set-gid bit"},
		{"a program that he may not execute is refused", []string{"--exec", locked, "--open", "path"}, "has no x for others"},
		{"a file that nobody executes is refused", []string{"--exec", data}, "has no x for others"},
		{"a pipe is not opened", []string{"--open", "fifo"}, "not a regular file"},
		{"an Envoy of another user is refused", []string{"--envoy-uid", "0"}, "may not have an Envoy that runs as uid 0"},
		{"a session of another user is not resumed", []string{"--envoy-uid", "1337", "--resume", "0123456789ab"}, "may not have an Envoy that runs as uid 1337"},
	} {
		t.Run(row.name, func(t *testing.T) {
			if out := attack(n, w, row.args...); !strings.Contains(out, row.says) {
				t.Errorf("%q, want %q", out, row.says)
			}
		})
	}
}

func TestOneUserCannotTakeAllSessionsOfANode(t *testing.T) {
	t.Parallel()
	w := world.Start(t)
	n := w.Join("n1")
	w.Apply(world.Identity("app", "n1", "unix:uid:"+nobody))
	if out := attack(n, w, "--at-once", "270"); strings.Count(out, "attested") != 256 || !strings.Contains(out, "uid "+nobody+" has 256 sessions already, its limit") {
		t.Errorf("%d sessions, want 256 and then a refusal:\n%.600s", strings.Count(out, "attested"), out)
	}
}

// A34: 3,000 connections of one user, who says nothing on any.
func TestA34OneUserCannotTakeAllConnectionsOfAnAgent(t *testing.T) {
	t.Parallel()
	w := world.Start(t)
	n := w.Join("n1")
	cmd := exec.Command("setpriv", "--reuid", nobody, "--regid", nobody, "--clear-groups", world.Tool(w, "attacker"), "--socket", n.Socket, "--silent", "3000")
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		stdin.Close()
		_ = cmd.Wait()
	}()
	line, _ := bufio.NewReader(stdout).ReadString('\n')
	kept := -1
	if _, err := fmt.Sscanf(line, "kept %d", &kept); err != nil || kept > 2048 {
		t.Errorf("the agent keeps %d connections of one user (%q), want at most 2048", kept, line)
	}
	me(t, w, n) // another user is served meanwhile
}
