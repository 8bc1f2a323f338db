package drain_test

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/legation-io/legation/sdk/certfile"
	"github.com/legation-io/legation/sdk/chaincheck"
	"github.com/legation-io/legation/sdk/drain"
	"github.com/legation-io/legation/sdk/internal/pkitest"
	"github.com/legation-io/legation/sdk/mtls"
)

const (
	patience = time.Minute
	child    = "LEGATION_TEST_DRAIN" // which server the process is
	folder   = "LEGATION_TEST_DRAIN_DIR"
	deadline = "LEGATION_TEST_DRAIN_DEADLINE"
)

func TestMain(m *testing.M) {
	if kind := os.Getenv(child); kind != "" {
		if err := serve(kind, os.Getenv(folder)); err != nil {
			fmt.Fprintln(os.Stderr, "ended:", err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	goleak.VerifyTestMain(m)
}

// work answers after a while; /slow after a time that the client asks for.
func work(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return
	}
	pause := 5 * time.Millisecond
	if d, err := time.ParseDuration(r.URL.Query().Get("pause")); err == nil {
		fmt.Println("working")
		pause = d
	}
	select {
	case <-time.After(pause):
	case <-r.Context().Done():
		return
	}
	fmt.Fprintf(w, "done %s", body)
}

// serve is the program under test.
func serve(kind, dir string) error {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	within, err := time.ParseDuration(os.Getenv(deadline))
	if err != nil {
		return err
	}
	// The notice is longer than any client of the tests is idle, on a busy machine, too.
	c := drain.Config{Notice: 1500 * time.Millisecond, Deadline: within, Draining: func() { fmt.Println("not ready") }}
	files, err := certfile.New(certfile.Config{
		Certificate: filepath.Join(dir, "tls.crt"), Key: filepath.Join(dir, "tls.key"), Bundle: filepath.Join(dir, "bundle.pem"), Poll: time.Hour, Settle: time.Hour,
	})
	if err != nil {
		return err
	}
	c.Reload = []func() error{files.Reload, func() error { fmt.Println("reloaded"); return nil }}
	server := &http.Server{Handler: http.HandlerFunc(work)}
	var part drain.Part
	switch kind {
	case "http":
		part = drain.HTTP(server, listener)
	case "https":
		server.TLSConfig = &tls.Config{GetCertificate: files.GetCertificate}
		part = drain.HTTP(server, listener)
	case "mtls":
		l, err := mtls.NewListener(listener, mtls.ServerConfig{Source: files, Authorize: mtls.AuthorizeMemberOf(home), Revocation: chaincheck.Prefer})
		if err != nil {
			return err
		}
		part = drain.HTTP(server, l)
	case "grpc":
		s := grpc.NewServer()
		grpc_health_v1.RegisterHealthServer(s, slow{Server: health.NewServer()})
		part = drain.GRPC(s, listener)
	}
	fmt.Println("listening", listener.Addr())
	return drain.Run(context.Background(), c, part, drain.Background("certificate files", files.Run))
}

var home = spiffeid.RequireTrustDomainFromString("example.org")

type slow struct{ *health.Server }

func (s slow) Check(ctx context.Context, r *grpc_health_v1.HealthCheckRequest) (*grpc_health_v1.HealthCheckResponse, error) {
	time.Sleep(5 * time.Millisecond)
	return s.Server.Check(ctx, r)
}

// A program is a process that serves.
type program struct {
	t      *testing.T
	cmd    *exec.Cmd
	addr   string
	dir    string
	domain *pkitest.Domain
	lines  chan string
	log    bytes.Buffer // read after it ended
}

func start(t *testing.T, kind string, within time.Duration) *program {
	t.Helper()
	p := &program{t: t, dir: t.TempDir(), domain: pkitest.New(t, "example.org", nil), lines: make(chan string, 1000)}
	p.certificate()
	p.write("bundle.pem", "CERTIFICATE", p.domain.Root().Cert.Raw)
	p.cmd = exec.Command(os.Args[0])
	p.cmd.Env = append(os.Environ(), child+"="+kind, folder+"="+p.dir, deadline+"="+within.String())
	p.cmd.Stderr = &p.log
	out, err := p.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	read := make(chan struct{})
	go func() {
		defer close(read)
		for s := bufio.NewScanner(out); s.Scan(); {
			p.lines <- s.Text()
		}
	}()
	t.Cleanup(func() { p.cmd.Process.Kill(); _ = p.cmd.Wait(); <-read })
	p.addr = strings.TrimPrefix(p.says("listening "), "listening ")
	return p
}

func (p *program) write(name, kind string, ders ...[]byte) {
	p.t.Helper()
	var b bytes.Buffer
	for _, der := range ders {
		pem.Encode(&b, &pem.Block{Type: kind, Bytes: der})
	}
	if err := os.WriteFile(filepath.Join(p.dir, name), b.Bytes(), 0o600); err != nil {
		p.t.Fatal(err)
	}
}

// certificate gives the program a new one.
func (p *program) certificate() *tls.Certificate {
	p.t.Helper()
	c := p.domain.Issue("/model", func(c *x509.Certificate) { c.DNSNames = []string{"localhost"} })
	key, err := x509.MarshalPKCS8PrivateKey(c.PrivateKey)
	if err != nil {
		p.t.Fatal(err)
	}
	p.write("tls.key", "PRIVATE KEY", key)
	p.write("tls.crt", "CERTIFICATE", c.Certificate...)
	return c
}

// says waits for a line.
func (p *program) says(start string) string {
	p.t.Helper()
	late := time.After(patience)
	for {
		select {
		case line := <-p.lines:
			if strings.HasPrefix(line, start) {
				return line
			}
		case <-late:
			p.t.Fatalf("the program does not say %q", start)
		}
	}
}

func (p *program) signal(s os.Signal) {
	p.t.Helper()
	if err := p.cmd.Process.Signal(s); err != nil {
		p.t.Fatal(err)
	}
}

// ends waits for the process's end and returns its exit code.
func (p *program) ends() int {
	p.t.Helper()
	done := make(chan struct{})
	go func() { _ = p.cmd.Wait(); close(done) }()
	select {
	case <-done:
		return p.cmd.ProcessState.ExitCode()
	case <-time.After(patience):
		p.t.Fatal("the program does not end")
		return -1
	}
}

// transport is a client's, keeping connections or not.
func (p *program) transport(kind string, http2, fresh bool) (*http.Transport, string) {
	tr := &http.Transport{DisableKeepAlives: fresh, MaxIdleConnsPerHost: 4}
	switch kind {
	case "http":
		return tr, "http://" + p.addr
	case "https":
		roots := x509.NewCertPool()
		roots.AddCert(p.domain.Root().Cert)
		tr.TLSClientConfig = &tls.Config{RootCAs: roots, ServerName: "localhost"}
		tr.ForceAttemptHTTP2 = http2
		return tr, "https://" + p.addr
	default:
		dialer, err := mtls.NewDialer(mtls.ClientConfig{Source: p.domain.Source("/web"), Authorize: mtls.AuthorizeMemberOf(home), Revocation: chaincheck.Prefer})
		if err != nil {
			p.t.Fatal(err)
		}
		tr.DialTLSContext = func(ctx context.Context, network, addr string) (net.Conn, error) {
			return dialer.DialContext(ctx, network, addr)
		}
		tr.ForceAttemptHTTP2 = http2
		return tr, "https://" + p.addr
	}
}

// traffic sends requests until the door is closed; every other failure is a
// lost request.
type traffic struct {
	done sync.WaitGroup
	ok   atomic.Int64
	lost chan error
}

func (tr *traffic) send(request func(n int) error) {
	tr.done.Go(func() {
		for n := 0; ; n++ {
			err := request(n)
			switch {
			case err == nil:
				tr.ok.Add(1)
			case errors.Is(err, syscall.ECONNREFUSED):
				return
			default:
				tr.lost <- err
				return
			}
		}
	})
}

func post(client *http.Client, url string, n int) error {
	method, body := http.MethodGet, ""
	if n%2 == 0 {
		method, body = http.MethodPost, fmt.Sprint(n)
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, method, url, strings.NewReader(body))
	if err != nil {
		return err
	}
	resp, err := client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	got, err := io.ReadAll(resp.Body)
	if err != nil {
		return err
	}
	if resp.StatusCode != http.StatusOK || string(got) != "done "+body {
		return fmt.Errorf("%s: %q", resp.Status, got)
	}
	return nil
}

func TestNoRequestIsLostWhenAProcessDrains(t *testing.T) {
	for _, row := range []struct {
		name, kind   string
		http2, fresh bool
		signal       os.Signal
	}{
		{"HTTP, kept connections, SIGTERM", "http", false, false, syscall.SIGTERM},
		{"HTTP, a connection for each request, SIGTERM", "http", false, true, syscall.SIGTERM},
		{"HTTPS, kept connections, SIGINT", "https", false, false, syscall.SIGINT},
		{"HTTPS, a connection for each request, SIGTERM", "https", false, true, syscall.SIGTERM},
		{"HTTP/2, SIGTERM", "https", true, false, syscall.SIGTERM},
		{"mutual TLS, kept connections, SIGTERM", "mtls", false, false, syscall.SIGTERM},
		{"mutual TLS, a connection for each request, SIGTERM", "mtls", false, true, syscall.SIGTERM},
		{"mutual TLS, HTTP/2, SIGTERM", "mtls", true, false, syscall.SIGTERM},
	} {
		t.Run(row.name, func(t *testing.T) {
			t.Parallel()
			p := start(t, row.kind, patience)
			tr := &traffic{lost: make(chan error, 100)}
			for range 6 {
				transport, url := p.transport(row.kind, row.http2, row.fresh)
				defer transport.CloseIdleConnections()
				client := &http.Client{Transport: transport}
				tr.send(func(n int) error { return post(client, url, n) })
			}
			for tr.ok.Load() < 100 && len(tr.lost) == 0 {
				time.Sleep(time.Millisecond)
			}
			p.signal(row.signal)
			tr.done.Wait()
			if code := p.ends(); code != 0 {
				t.Errorf("exit code %d\n%s", code, p.log.String())
			}
			close(tr.lost)
			for err := range tr.lost {
				t.Errorf("lost: %v", err)
			}
			if t.Failed() {
				t.Logf("%d answered\n%s", tr.ok.Load(), p.log.String())
			}
		})
	}
}

func TestNoCallIsLostWhenAGRPCServerDrains(t *testing.T) {
	t.Parallel()
	p := start(t, "grpc", patience)
	tr := &traffic{lost: make(chan error, 100)}
	for range 6 {
		conn, err := grpc.NewClient(p.addr, grpc.WithTransportCredentials(insecure.NewCredentials()))
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		client := grpc_health_v1.NewHealthClient(conn)
		tr.send(func(int) error {
			ctx, cancel := context.WithTimeout(context.Background(), patience)
			defer cancel()
			_, err := client.Check(ctx, &grpc_health_v1.HealthCheckRequest{})
			if status.Code(err) == codes.Unavailable && strings.Contains(err.Error(), "connection refused") {
				return syscall.ECONNREFUSED
			}
			return err
		})
	}
	for tr.ok.Load() < 100 && len(tr.lost) == 0 {
		time.Sleep(time.Millisecond)
	}
	p.signal(syscall.SIGTERM)
	tr.done.Wait()
	if code := p.ends(); code != 0 {
		t.Errorf("exit code %d\n%s", code, p.log.String())
	}
	close(tr.lost)
	for err := range tr.lost {
		t.Errorf("lost: %v", err)
	}
}

func TestSIGHUPReloadsWithoutDroppingAConnection(t *testing.T) {
	p := start(t, "https", patience)
	transport, url := p.transport("https", false, false)
	defer transport.CloseIdleConnections()
	client := &http.Client{Transport: transport}
	served := func(client *http.Client) string {
		t.Helper()
		resp, err := client.Get(url)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		io.Copy(io.Discard, resp.Body)
		return resp.TLS.PeerCertificates[0].SerialNumber.String()
	}
	before := served(client)
	next := p.certificate()
	for range 3 { // nothing but the signal makes it look
		p.signal(syscall.SIGHUP)
		p.says("reloaded")
	}
	other, _ := p.transport("https", false, true)
	if got := served(&http.Client{Transport: other}); got != next.Leaf.SerialNumber.String() {
		t.Errorf("serial %s is served, want %s", got, next.Leaf.SerialNumber)
	}
	if got := served(client); got != before {
		t.Error("the open connection was replaced")
	}
	// A bad file changes nothing.
	p.write("tls.key", "PRIVATE KEY", []byte("bad"))
	p.signal(syscall.SIGHUP)
	p.says("reloaded")
	if got := served(&http.Client{Transport: other}); got != next.Leaf.SerialNumber.String() {
		t.Errorf("serial %s is served after a bad reload", got)
	}
	transport.CloseIdleConnections()
	p.signal(syscall.SIGTERM)
	if code := p.ends(); code != 0 || !strings.Contains(p.log.String(), "reload failed") {
		t.Errorf("exit code %d\n%s", code, p.log.String())
	}
}

func TestHowLongDrainingMayTake(t *testing.T) {
	for _, row := range []struct {
		name, pause string
		within      time.Duration
		again       bool
		answered    bool
		code        int
		says        string
	}{
		{"a slow request is waited for", "2500ms", patience, false, true, 0, "drained"},
		{"one beyond the deadline is cut", "10m", time.Second, false, false, 1, "draining took longer than 1s"},
		{"a second signal cuts at once", "10m", patience, true, false, 1, "a second signal cut draining short"},
	} {
		t.Run(row.name, func(t *testing.T) {
			p := start(t, "http", row.within)
			answer := make(chan error, 1)
			go func() {
				resp, err := http.Get("http://" + p.addr + "/?pause=" + row.pause)
				if err == nil {
					resp.Body.Close()
				}
				answer <- err
			}()
			p.says("working")
			begin := time.Now()
			p.signal(syscall.SIGTERM)
			p.says("not ready")
			if row.again {
				p.signal(syscall.SIGTERM)
			}
			if code := p.ends(); code != row.code || !strings.Contains(p.log.String(), row.says) {
				t.Errorf("exit code %d after %s\n%s", code, time.Since(begin), p.log.String())
			}
			if err := <-answer; (err == nil) != row.answered {
				t.Errorf("answered: %v", err)
			}
			if row.again && time.Since(begin) > patience/2 {
				t.Errorf("it took %s", time.Since(begin))
			}
		})
	}
	http.DefaultClient.CloseIdleConnections()
}
