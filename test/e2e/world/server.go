package world

import (
	"errors"
	"fmt"
	"os"
	"strings"
)

// Server is a control plane, started and ended as often as a test likes.
type Server struct {
	*Process
	DataDir, Admin, Listen, Metrics string

	w     *World
	name  string
	flags []string
}

// NewServer says how a control plane is started, and does not start it.
func (w *World) NewServer(name string, flags ...string) *Server {
	ip := w.IP()
	return &Server{w: w, name: name, flags: flags, DataDir: w.Path(name), Admin: w.Path(name + ".sock"), Listen: ip + ":15012", Metrics: ip + ":15014"}
}

// Argv is its command line.
func (s *Server) Argv(flags ...string) []string {
	argv := []string{Tool(s.w, "legation"), "server", "--trust-domain", TrustDomain, "--data-dir", s.DataDir,
		"--listen", s.Listen, "--metrics", s.Metrics, "--admin-socket", s.Admin}
	return append(append(argv, s.flags...), flags...)
}

// Launch starts the process and waits for nothing.
func (s *Server) Launch() {
	s.w.Helper()
	s.Process = s.w.Run(s.name, s.Argv())
}

// Start starts it and waits until it serves.
func (s *Server) Start() {
	s.w.Helper()
	s.Launch()
	s.Serves()
}

// Serves waits until the admin API answers.
func (s *Server) Serves() {
	s.w.Helper()
	Until(s.w, Patience, s.name+" serves", func() error {
		if s.Ended() {
			s.w.Fatalf("%s ended: %s", s.name, s.Tail(10))
		}
		return s.w.TryJSON(nil, "--server", "unix://"+s.Admin, "bundle", "show")
	})
}

// Refuses starts it where it has to refuse to start, and returns what it said.
func (s *Server) Refuses(flags ...string) (code int, said string) {
	s.w.Helper()
	r := s.w.Command(s.Argv(flags...)...)
	return r.Code, r.Stderr
}

// Node is an agent, started and ended as often as a test likes.
type Node struct {
	*Process
	Name, DataDir, Socket, Admin, Metrics string

	w     *World
	flags []string
}

// Token of "token create".
type Token struct{ Token, Node, BundleHash string }

// Token makes a join token.
func (w *World) Token(node string, flags ...string) Token {
	w.Helper()
	var t Token
	w.JSON(&t, append([]string{"token", "create", "--node", node}, flags...)...)
	return t
}

// NewNode says how an agent is started, without token and pin.
func (w *World) NewNode(name string, flags ...string) *Node {
	return &Node{
		w: w, Name: name, flags: flags, DataDir: w.Path(name), Socket: w.Path(name + ".sock"), Admin: w.Path(name + "-admin.sock"), Metrics: w.IP() + ":15020",
	}
}

// Join makes a node with a token and waits until it is attested.
func (w *World) Join(name string, flags ...string) *Node {
	w.Helper()
	n := w.NewNode(name, flags...)
	n.Admit()
	n.Start()
	return n
}

// Admit gives the node a new token and the bundle's hash.
func (n *Node) Admit() {
	n.w.Helper()
	token := n.w.Token(n.Name)
	file := n.w.Write(n.Name+".token", token.Token, 0o600)
	n.flags = append(n.flags, "--join-token-file", file, "--bundle-hash", token.BundleHash)
}

// Argv is its command line.
func (n *Node) Argv(flags ...string) []string {
	argv := []string{Tool(n.w, "legation-agent"), "serve", "--trust-domain", TrustDomain, "--server", n.w.Server.Listen,
		"--data-dir", n.DataDir, "--socket", n.Socket, "--admin-socket", n.Admin, "--run-dir", n.w.Path("s-" + n.Name), "--metrics", n.Metrics}
	return append(append(argv, n.flags...), flags...)
}

// Launch starts the process and waits for nothing.
func (n *Node) Launch() {
	n.w.Helper()
	n.Process = n.w.Run(n.Name, n.Argv())
}

// Start starts it and waits until it is connected to the control plane.
func (n *Node) Start() {
	n.w.Helper()
	n.Launch()
	n.Connected()
}

// Status of an agent, as it tells its machine's owner.
type Status struct {
	Connected  bool
	LastError  string
	Entries    int
	Identities []struct{ SPIFFEID, Serial, Entry string }
	Problems   []string
}

// Status asks the agent.
func (n *Node) Status() (Status, error) {
	var st Status
	err := n.JSON(&st, "status", "--node")
	return st, err
}

// JSON asks the agent by the CLI.
func (n *Node) JSON(into any, args ...string) error {
	return n.w.TryJSON(into, append([]string{"--agent", "unix://" + n.Admin}, args...)...)
}

// Connected waits until the agent has a control plane.
func (n *Node) Connected() {
	n.w.Helper()
	Until(n.w, Patience, n.Name+" is connected", func() error {
		if n.Ended() {
			n.w.Fatalf("%s ended: %s", n.Name, n.Tail(10))
		}
		st, err := n.Status()
		if err == nil && !st.Connected {
			err = errors.New("not connected: " + st.LastError)
		}
		return err
	})
}

// Serves waits until the agent answers, connected or not.
func (n *Node) Serves() {
	n.w.Helper()
	Until(n.w, Patience, n.Name+" serves", func() error {
		_, err := n.Status()
		return err
	})
}

// Session is a program run beside its own Envoy.
type Session struct {
	*Process
	name string
	node *Node
	argv []string
	env  []string
}

// NewSession says how "legation-agent run FLAGS -- PROGRAM" is started on a
// node; prefix may put it in a network namespace.
func (n *Node) NewSession(name string, prefix, flags []string, program ...string) *Session {
	argv := append(append([]string{}, prefix...), Tool(n.w, "legation-agent"), "run", "--socket", n.Socket, "--envoy-concurrency", "1")
	argv = append(append(append(argv, flags...), "--"), program...)
	return &Session{name: name, node: n, argv: argv}
}

// Run starts a session and waits until its program runs.
func (n *Node) Run(name string, prefix, flags []string, program ...string) *Session {
	n.w.Helper()
	s := n.NewSession(name, prefix, flags, program...)
	s.Start()
	return s
}

// Launch starts it and waits for nothing.
func (s *Session) Launch() { s.Process = s.node.w.Run(s.name, s.argv, s.env...) }

// Start starts it and waits until its program runs.
func (s *Session) Start() {
	s.node.w.Helper()
	before := strings.Count(s.read(), started)
	s.Launch()
	s.Started(before + 1)
}

const started = "program started"

// Started waits until programs have started n times in all.
func (s *Session) Started(n int) {
	s.node.w.Helper()
	Until(s.node.w, Patience, s.name+" starts its program", func() error {
		out := s.read()
		if strings.Count(out, started) >= n {
			return nil
		}
		if s.Ended() {
			s.node.w.Fatalf("%s ended: %s", s.name, s.Tail(10))
		}
		return fmt.Errorf("not yet; its log ends: %s", s.Tail(3))
	})
}

func (s *Session) read() string {
	raw, _ := os.ReadFile(s.LogPath())
	return string(raw)
}

// LogPath is where it and its program write.
func (s *Session) LogPath() string { return s.node.w.Path(s.name + ".log") }

// Count says how often its log has a text.
func (s *Session) Count(text string) int { return strings.Count(s.read(), text) }

// Envoy is the pid of the session's Envoy, 0 while there is none.
func (s *Session) Envoy() int {
	for _, pid := range Children(s.PID) {
		if strings.HasSuffix(Exe(pid), "/envoy") {
			return pid
		}
	}
	return 0
}

// Program is the pid of the session's program, 0 when it has ended.
func (s *Session) Program() int {
	for _, pid := range Children(s.PID) {
		if exe := Exe(pid); exe != "" && !strings.HasSuffix(exe, "/envoy") {
			return pid
		}
	}
	return 0
}
