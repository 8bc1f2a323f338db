// Package envoysds proves that Envoys which people run themselves work with
// the agent as they stand: it starts real Envoys with the very files of
// examples/envoy-sds, against the real binaries.
package envoysds

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/legation-io/legation/internal/envoytest"
	"github.com/legation-io/legation/test/stand"
)

const (
	backendID = "spiffe://example.org/ns/retail/sa/backend"
	webID     = "spiffe://example.org/ns/retail/sa/web"
)

// rig is a control plane, one node and what the examples are filled in with.
type rig struct {
	*stand.Stand
	t        testing.TB
	agent    *stand.Agent
	program  string // HOST:PORT of the backend's program
	inbound  string // of the backend's Envoy
	outbound string // of the web's Envoy
	sds      string // of SDS over TCP
	roots    string // root file
}

func newRig(t testing.TB, agentArgs ...string) *rig {
	t.Helper()
	r := &rig{t: t, Stand: stand.New(t), inbound: stand.FreeAddr(t), outbound: stand.FreeAddr(t), sds: stand.FreeAddr(t)}
	for i, a := range agentArgs {
		if a == "127.0.0.1:8234" {
			agentArgs[i] = r.sds
		}
	}
	r.agent = r.Agent("node-1", agentArgs...)
	r.roots = filepath.Join(r.Dir, "roots.pem")
	if err := os.WriteFile(r.roots, []byte(r.Must("bundle", "show")), 0o644); err != nil {
		t.Fatal(err)
	}
	// The program behind the backend's Envoy tells who called.
	program := http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		fmt.Fprint(w, q.Header.Get("X-Forwarded-Client-Cert"))
	}), ReadHeaderTimeout: stand.Patience}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	r.program = l.Addr().String()
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = program.Serve(l)
	}()
	t.Cleanup(func() {
		program.Close()
		<-done
	})
	return r
}

// example reads a file of the example and fills in this test's paths and
// ports, and nothing else.
func (r *rig) example(name string) string {
	r.t.Helper()
	raw, err := os.ReadFile(filepath.Join(stand.Root(r.t), "examples", "envoy-sds", name))
	if err != nil {
		r.t.Fatal(err)
	}
	text := string(raw)
	for old, now := range map[string]string{
		"/run/legation/agent.sock": r.agent.Socket, "/etc/legation/roots.pem": r.roots, "/run/retail/": r.Dir + "/",
		"port_value: 8443": "port_value: " + port(r.inbound), "port_value: 9001": "port_value: " + port(r.outbound),
		"port_value: 8080": "port_value: " + port(r.program), "port_value: 8234": "port_value: " + port(r.sds),
	} {
		text = strings.ReplaceAll(text, old, now)
	}
	if os.Geteuid() != 0 { // without root both run as this user, and differ by path
		for _, uid := range []int{1101, 1102} {
			text = strings.ReplaceAll(text, fmt.Sprintf("unix:uid:%d", uid), "unix:path:"+r.binary(uid))
		}
	}
	return text
}

func port(addr string) string {
	_, p, _ := net.SplitHostPort(addr)
	return p
}

// binary is the Envoy of a user: the same for all as root, else a copy.
func (r *rig) binary(uid int) string {
	r.t.Helper()
	source := envoytest.Binary(r.t)
	if os.Geteuid() == 0 {
		return source
	}
	to := filepath.Join(r.Dir, "envoy-"+strconv.Itoa(uid))
	if _, err := os.Stat(to); err == nil {
		return to
	}
	if os.Link(source, to) == nil {
		return to
	}
	if out, err := exec.Command("cp", source, to).CombinedOutput(); err != nil {
		r.t.Fatalf("copy Envoy: %v: %s", err, out)
	}
	return to
}

// proxy is a real Envoy that the test runs as a person would.
type proxy struct {
	*stand.Process
	socket string // of its admin interface
	r      *rig
}

// start runs Envoy as the user with a configuration.
func (r *rig) start(uid int, name, config string) *proxy {
	r.t.Helper()
	file := filepath.Join(r.Dir, name+".yaml")
	if err := os.WriteFile(file, []byte(config), 0o644); err != nil {
		r.t.Fatal(err)
	}
	argv := []string{r.binary(uid), "-c", file, "--disable-hot-restart", "--concurrency", "1", "--log-level", "warning"}
	socket := filepath.Join(r.Dir, name+"-admin.sock")
	if os.Geteuid() == 0 {
		// The folder must be the user's, for its admin socket; each has its own.
		dir := filepath.Join(r.Dir, strconv.Itoa(uid))
		if err := errors.Join(os.MkdirAll(dir, 0o700), os.Chown(dir, uid, uid)); err != nil {
			r.t.Fatal(err)
		}
		config = strings.ReplaceAll(config, socket, filepath.Join(dir, name+"-admin.sock"))
		socket = filepath.Join(dir, name+"-admin.sock")
		if err := os.WriteFile(file, []byte(config), 0o644); err != nil {
			r.t.Fatal(err)
		}
		id := strconv.Itoa(uid)
		argv = append([]string{"setpriv", "--reuid", id, "--regid", id, "--clear-groups"}, argv...)
	}
	return &proxy{Process: stand.Start(r.t, name, argv...), socket: socket, r: r}
}

func (r *rig) backend() *proxy { return r.start(1101, "backend", r.example("server.yaml")) }
func (r *rig) web() *proxy     { return r.start(1102, "web", r.example("client.yaml")) }

// call sends one request through the web's Envoy, on a connection of its own
// as far as the test's side goes.
func (r *rig) call() (string, error) {
	client := http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := client.Get("http://" + r.outbound + "/")
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s", resp.Status, body)
	}
	return string(body), err
}

// works waits until a request arrives as web's.
func (r *rig) works(when string) {
	r.t.Helper()
	begin := time.Now()
	stand.Until(r.t, when, func() error {
		caller, err := r.call()
		if err == nil && !strings.Contains(caller, "URI="+webID) {
			err = fmt.Errorf("the program was told that %q calls", caller)
		}
		return err
	})
	r.t.Logf("%s: after %s", when, time.Since(begin).Round(time.Millisecond))
}
