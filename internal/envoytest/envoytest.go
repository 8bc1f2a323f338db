// Package envoytest starts real Envoys in tests. It is imported by tests only.
package envoytest

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// Patience bounds every wait of this package.
const Patience = time.Minute

// Binary is the Envoy that tests run: LEGATION_ENVOY, else
// tools/envoy/envoy under the module root. It ends the test when there is
// none.
func Binary(t testing.TB) string {
	t.Helper()
	if p := os.Getenv("LEGATION_ENVOY"); p != "" {
		if _, err := os.Stat(p); err != nil {
			t.Fatalf("LEGATION_ENVOY: %v", err)
		}
		return p
	}
	dir, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	for {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			p := filepath.Join(dir, "tools", "envoy", "envoy")
			if _, err := os.Stat(p); err == nil {
				return p
			}
		}
		up := filepath.Dir(dir)
		if up == dir {
			t.Fatal("there is no Envoy at tools/envoy/envoy; run: make envoy (or set LEGATION_ENVOY)")
		}
		dir = up
	}
}

// Options of Start; the zero value works.
type Options struct {
	// Wrap is put before Envoy's command line, e.g. ip netns exec NAME.
	Wrap []string
	// Args follow it, e.g. --service-node x.
	Args []string
	// LogLevel is Envoy's; "" is warning.
	LogLevel string
	// NoWait returns without waiting until Envoy is live.
	NoWait bool
}

// Envoy is a running Envoy that ends with its test.
type Envoy struct {
	Dir string // private, short enough for sockets, removed with the test
	PID int

	t      testing.TB
	admin  *http.Client
	stderr *lines
	exited chan struct{}
	once   sync.Once
}

// Dir makes a directory whose path is short enough for Unix sockets and
// removes it with the test.
func Dir(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("/tmp", "envoy")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// Start runs Envoy with a bootstrap (YAML or JSON, without admin: that is a
// 0600 Unix socket of the harness) and waits until it is live.
func Start(t testing.TB, bootstrap string, o Options) *Envoy {
	t.Helper()
	e := &Envoy{t: t, Dir: Dir(t), stderr: &lines{}, exited: make(chan struct{})}
	config, socket := filepath.Join(e.Dir, "bootstrap.yaml"), filepath.Join(e.Dir, "admin.sock")
	if err := os.WriteFile(config, []byte(bootstrap), 0o600); err != nil {
		t.Fatal(err)
	}
	e.admin = &http.Client{Timeout: Patience, Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", socket)
		},
	}}
	if o.LogLevel == "" {
		o.LogLevel = "warning"
	}
	argv := append(append([]string{}, o.Wrap...), Binary(t), "-c", config,
		"--config-yaml", fmt.Sprintf("admin: {address: {pipe: {path: %q, mode: 384}}}", socket),
		"--disable-hot-restart", "--concurrency", "1", "--log-level", o.LogLevel,
		"--drain-time-s", "1", "--parent-shutdown-time-s", "2")
	argv = append(argv, o.Args...)
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Stdout, cmd.Stderr = e.stderr, e.stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	started := make(chan error, 1)
	go func() {
		// Pdeathsig is about the thread that started the child: keep it.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := cmd.Start()
		if err == nil {
			e.PID = cmd.Process.Pid
		}
		started <- err
		if err == nil {
			cmd.Wait()
		}
		close(e.exited)
	}()
	if err := <-started; err != nil {
		t.Fatalf("start Envoy: %v", err)
	}
	t.Cleanup(e.Kill)
	if !o.NoWait {
		e.Ready()
	}
	return e
}

// Ready waits until Envoy is live: all its listeners and clusters are warm.
func (e *Envoy) Ready() {
	e.t.Helper()
	e.Until("Envoy is live", func() error {
		code, body, err := e.get("/ready")
		if err == nil && code != http.StatusOK {
			err = fmt.Errorf("%d %s", code, body)
		}
		return err
	})
}

// Until polls until f returns nil, and ends the test when that does not
// happen or Envoy exits.
func (e *Envoy) Until(what string, f func() error) {
	e.t.Helper()
	deadline := time.Now().Add(Patience)
	for {
		err := f()
		if err == nil {
			return
		}
		select {
		case <-e.exited:
			e.t.Fatalf("waiting until %s: Envoy exited; its log:\n%s", what, e.Log())
		case <-time.After(5 * time.Millisecond):
		}
		if time.Now().After(deadline) {
			e.t.Fatalf("waited in vain until %s: %v; Envoy's log:\n%s", what, err, e.Log())
		}
	}
}

func (e *Envoy) get(path string) (int, string, error) { return e.do(http.MethodGet, path) }

func (e *Envoy) do(method, path string) (int, string, error) {
	req, err := http.NewRequest(method, "http://admin"+path, nil)
	if err != nil {
		return 0, "", err
	}
	r, err := e.admin.Do(req)
	if err != nil {
		return 0, "", err
	}
	defer r.Body.Close()
	body, err := io.ReadAll(r.Body)
	return r.StatusCode, string(body), err
}

// Admin returns the body of a GET on Envoy's admin, e.g. "/config_dump".
func (e *Envoy) Admin(path string) string { return e.admind(http.MethodGet, path) }

// Post is Admin for what changes something, e.g. "/logging?level=debug".
func (e *Envoy) Post(path string) string { return e.admind(http.MethodPost, path) }

func (e *Envoy) admind(method, path string) string {
	e.t.Helper()
	code, body, err := e.do(method, path)
	if err != nil || code != http.StatusOK {
		e.t.Fatalf("Envoy admin %s: %d %v %s", path, code, err, body)
	}
	return body
}

// Stat returns the counter or gauge with that full name, and whether Envoy
// has it.
func (e *Envoy) Stat(name string) (uint64, bool) {
	e.t.Helper()
	for line := range strings.Lines(e.Admin("/stats?usedonly=false")) {
		key, value, ok := strings.Cut(strings.TrimSpace(line), ": ")
		if ok && key == name {
			n, err := strconv.ParseUint(value, 10, 64)
			return n, err == nil
		}
	}
	return 0, false
}

// ListenerAddr is the address a listener got that was configured with port 0.
func (e *Envoy) ListenerAddr(name string) string {
	e.t.Helper()
	var got struct {
		ListenerStatuses []struct {
			Name         string
			LocalAddress struct {
				SocketAddress struct {
					Address   string
					PortValue int `json:"port_value"`
				} `json:"socket_address"`
			} `json:"local_address"`
		} `json:"listener_statuses"`
	}
	var addr string
	e.Until("listener "+name+" has an address", func() error {
		if err := json.Unmarshal([]byte(e.Admin("/listeners?format=json")), &got); err != nil {
			return err
		}
		for _, l := range got.ListenerStatuses {
			if a := l.LocalAddress.SocketAddress; l.Name == name && a.PortValue != 0 {
				addr = net.JoinHostPort(a.Address, strconv.Itoa(a.PortValue))
				return nil
			}
		}
		return errors.New("not among the listeners")
	})
	return addr
}

// Kill ends Envoy at once, without drain, and waits for it.
func (e *Envoy) Kill() {
	e.once.Do(func() {
		select {
		case <-e.exited:
		default:
			syscall.Kill(-e.PID, syscall.SIGKILL)
		}
		<-e.exited
		if e.t.Failed() {
			e.t.Logf("Envoy's log:\n%s", e.Log())
		}
	})
}

// Exited is closed when Envoy has ended.
func (e *Envoy) Exited() <-chan struct{} { return e.exited }

// Log is the end of what Envoy wrote to stdout and stderr.
func (e *Envoy) Log() string { return e.stderr.String() }

// lines keeps the last 256 KiB written.
type lines struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.buf.Write(p)
	if extra := l.buf.Len() - 256<<10; extra > 0 {
		l.buf.Next(extra)
	}
	return len(p), nil
}

func (l *lines) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.String()
}
