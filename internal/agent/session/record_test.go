package session

import (
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	localv1 "github.com/legation-io/legation/api/local/v1"
	nodev1 "github.com/legation-io/legation/api/node/v1"
	"github.com/legation-io/legation/internal/fault"
)

// left is a session of this process as an agent would leave it.
func left(t *testing.T) (*Server, *session) {
	t.Helper()
	program := exec.Command("sleep", "60")
	if err := program.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = program.Process.Kill(); _ = program.Wait() })
	s := New(Params{RunDir: t.TempDir(), Log: slog.New(slog.NewTextHandler(io.Discard, nil))})
	sn := &session{
		server: s, runPID: int32(os.Getpid()), runUID: uint32(os.Getuid()), entry: &nodev1.Entry{SpiffeId: "spiffe://example.org/web"},
		start: &localv1.SessionStart{ChildPid: int32(program.Process.Pid), EnvoyUid: uint32(os.Geteuid())},
	}
	if err := s.name(sn); err != nil {
		t.Fatal(err)
	}
	if err := prepareDir(sn.dir, sn.start.EnvoyUid); err != nil {
		t.Fatal(err)
	}
	if err := sn.remember(); err != nil {
		t.Fatal(err)
	}
	return s, sn
}

func TestASessionIsResumedByItsOpenerAlone(t *testing.T) {
	for name, row := range map[string]struct {
		edit func(sn *session)
		want fault.Kind
	}{
		"the same parent with the same program": {func(*session) {}, ""},
		"another parent":                        {func(sn *session) { sn.runPID = 1 }, fault.Denied},
		"another user":                          {func(sn *session) { sn.runUID++ }, fault.Denied},
		"another program":                       {func(sn *session) { sn.start.ChildPid = 1 }, fault.Denied},
		"an Envoy of another user":              {func(sn *session) { sn.start.EnvoyUid++ }, fault.Denied},
		"an id that is a path":                  {func(sn *session) { sn.start.Resume = "../../etc" }, fault.Invalid},
		"an id in another spelling":             {func(sn *session) { sn.start.Resume = strings.Repeat("A", 12) }, fault.Invalid},
	} {
		t.Run(name, func(t *testing.T) {
			s, old := left(t)
			again := &session{server: s, runPID: old.runPID, runUID: old.runUID, start: &localv1.SessionStart{Resume: old.id, ChildPid: old.start.ChildPid, EnvoyUid: old.start.EnvoyUid, EnvoyPid: 7}}
			row.edit(again)
			err := s.name(again)
			if row.want != "" {
				if !fault.Is(err, row.want) {
					t.Fatalf("%v; want %s", err, row.want)
				}
				return
			}
			if err != nil || !again.resumed || again.dir != old.dir || again.envoyPID != 7 || again.record.SPIFFEID != "spiffe://example.org/web" {
				t.Fatalf("%v %+v", err, again)
			}
			if err := s.add(old); err != nil {
				t.Fatal(err)
			}
			if err := s.add(again); !fault.Is(err, fault.Conflict) {
				t.Errorf("while the first is still open: %v", err)
			}
		})
	}
}

func TestAnAgentRemovesWhatNobodyCanResume(t *testing.T) {
	s, sn := left(t)
	gone := *sn.record
	gone.RunStarted++ // the pid is another process's by now
	if err := s.save("000000000001", &gone); err != nil {
		t.Fatal(err)
	}
	rebooted := *sn.record
	rebooted.Boot = "another"
	if err := s.save("000000000002", &rebooted); err != nil {
		t.Fatal(err)
	}
	for _, dir := range []string{"000000000001", "000000000002", "000000000003"} {
		if err := os.Mkdir(filepath.Join(s.p.RunDir, dir), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Sweep(); err != nil {
		t.Fatal(err)
	}
	entries, err := os.ReadDir(s.p.RunDir)
	if err != nil || len(entries) != 2 || entries[0].Name() != sn.id || entries[1].Name() != sn.id+recordSuffix {
		t.Errorf("%v %v", entries, err)
	}
}

func TestASessionsSocketIsNoWayToOthersFiles(t *testing.T) {
	_, sn := left(t)
	victim := filepath.Join(t.TempDir(), "shadow")
	if err := os.WriteFile(victim, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(victim, sn.socket()); err != nil { // the folder is its Envoy's
		t.Fatal(err)
	}
	sn.start.EnvoyUid = uint32(os.Geteuid())
	if os.Geteuid() == 0 {
		sn.start.EnvoyUid = 65001
	}
	l, err := sn.listen()
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if st, err := os.Lstat(victim); err != nil || st.Mode() != 0o644 {
		t.Errorf("the file behind the link: %v %v", st.Mode(), err)
	}
	st, err := os.Lstat(sn.socket())
	if err != nil || st.Mode() != os.ModeSocket|0o600 {
		t.Fatalf("the socket: %v %v", st, err)
	}
	conn, err := net.Dial("unix", sn.socket())
	if err != nil {
		t.Fatal(err)
	}
	conn.Close()
}
