package mtls_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/legation-io/legation/sdk/handshake"
	"github.com/legation-io/legation/sdk/internal/pkitest"
	"github.com/legation-io/legation/sdk/mtls"
)

func memory() uint64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapInuse + m.StackInuse
}

func TestA34SilentConnectionsStarveNobody(t *testing.T) {
	const silent, timeout = 5000, mtls.DefaultHandshakeTimeout // as programs have it
	p := newPair(t, func(_ *pkitest.Domain, s *mtls.ServerConfig, _ *mtls.ClientConfig) { s.HandshakeTimeout = timeout })
	d := dialer(t, p.client)
	if _, err := dial(t, d, p.address()); err != nil {
		t.Fatal(err)
	}
	before, goroutines := memory(), runtime.NumGoroutine()
	conns := make([]net.Conn, 0, silent)
	defer func() {
		for _, c := range conns {
			c.Close()
		}
	}()
	start := time.Now()
	for range silent {
		c, err := net.Dial("tcp", p.address())
		if err != nil {
			t.Fatal(err)
		}
		conns = append(conns, c)
	}
	// Who connected last may begin first: from here on no place is given away
	// but to who comes now.
	until(t, "all silent ones have begun", func() bool {
		p.seen.mu.Lock()
		defer p.seen.mu.Unlock()
		return len(p.seen.failed) >= silent-mtls.DefaultMaxHandshakes
	})
	for range 20 {
		began := time.Now()
		c, err := dial(t, d, p.address())
		if err != nil {
			t.Fatalf("another is not served: %v", err)
		}
		c.Close()
		if took := time.Since(began); took > 20*time.Second {
			t.Errorf("another waited %s", took)
		}
	}
	until(t, "goroutines are bounded", func() bool { return runtime.NumGoroutine()-goroutines <= 3*mtls.DefaultMaxHandshakes+100 })
	// The client's side is in this process too: about 1 KiB each.
	if after := memory(); after > before+64<<20 {
		t.Errorf("memory grew from %d to %d KiB", before>>10, after>>10)
	} else {
		t.Logf("%d silent connections: %d KiB more, %d goroutines more", silent, (int64(after)-int64(before))>>10, runtime.NumGoroutine()-goroutines)
	}
	// None is left after the timeout.
	for _, c := range conns {
		c.SetReadDeadline(start.Add(timeout + patience))
		if _, err := c.Read(make([]byte, 1)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
			t.Fatalf("a silent connection is open after %s: %v", time.Since(start), err)
		}
	}
	if took := time.Since(start); took > timeout+30*time.Second {
		t.Errorf("the last was closed after %s", took)
	}
	until(t, "memory and goroutines are given back", func() bool { return runtime.NumGoroutine() < goroutines+50 })
	until(t, "all were told", func() bool { p.seen.mu.Lock(); defer p.seen.mu.Unlock(); return len(p.seen.failed) >= silent })
	p.seen.mu.Lock()
	defer p.seen.mu.Unlock()
	causes := map[handshake.Cause]int{}
	for _, e := range p.seen.failed {
		causes[e.Cause]++
	}
	if causes[handshake.Timeout] == 0 || causes[handshake.Canceled] == 0 || causes[handshake.Timeout]+causes[handshake.Canceled] != silent {
		t.Errorf("the silent ended by %v", causes)
	}
}

func writePEM(t testing.TB, cert *tls.Certificate) (certFile, keyFile string) {
	t.Helper()
	dir := t.TempDir()
	var chain []byte
	for _, der := range cert.Certificate {
		chain = append(chain, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})...)
	}
	key, err := x509.MarshalPKCS8PrivateKey(cert.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	certFile, keyFile = filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	if err := errors.Join(os.WriteFile(certFile, chain, 0o600),
		os.WriteFile(keyFile, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: key}), 0o600)); err != nil {
		t.Fatal(err)
	}
	return certFile, keyFile
}

func TestA34AFloodOfKeyUpdatesHarmsNobody(t *testing.T) {
	p := newPair(t, nil)
	cert, key := writePEM(t, p.Issue(web, nil))
	before := memory()
	var flood sync.WaitGroup
	for range 4 {
		flood.Go(func() {
			ctx, cancel := context.WithTimeout(context.Background(), patience)
			defer cancel()
			cmd := exec.CommandContext(ctx, "openssl", "s_client", "-connect", p.address(), "-tls1_3", "-cert", cert, "-cert_chain", cert, "-key", key)
			in, err := cmd.StdinPipe()
			if err != nil {
				t.Error(err)
				return
			}
			if err := cmd.Start(); err != nil {
				t.Error(err)
				return
			}
			for range 5000 { // K asks for ours too
				if _, err := io.WriteString(in, "K\n"); err != nil {
					break
				}
				time.Sleep(20 * time.Microsecond) // s_client reads one command at a time
			}
			in.Close()
			cmd.Wait()
		})
	}
	d := dialer(t, p.client)
	for range 20 {
		began := time.Now()
		c, err := dial(t, d, p.address())
		if err != nil {
			t.Fatalf("another is not served: %v", err)
		}
		c.Close()
		if took := time.Since(began); took > 20*time.Second {
			t.Errorf("another waited %s", took)
		}
	}
	flood.Wait()
	if after := memory(); after > before+32<<20 {
		t.Errorf("memory grew from %d to %d KiB", before>>10, after>>10)
	}
	until(t, "the flooding connections end", func() bool { return p.l.Open() == 0 })
	p.seen.mu.Lock()
	defer p.seen.mu.Unlock()
	if want := 20 + 4; p.seen.good < want {
		t.Errorf("%d handshakes, want %d: openssl was not let in, which tests nothing", p.seen.good, want)
	}
}

func TestAcceptIsNotHeldUpByHandshakes(t *testing.T) {
	p := newPair(t, func(_ *pkitest.Domain, s *mtls.ServerConfig, _ *mtls.ClientConfig) { s.MaxHandshakes = 2 })
	d := dialer(t, p.client)
	for range 3 {
		silent, err := net.Dial("tcp", p.address())
		if err != nil {
			t.Fatal(err)
		}
		defer silent.Close()
	}
	// Who connected first need not begin first.
	until(t, "the third silent one has begun", func() bool { return p.seen.last() != nil })
	for range 5 {
		if _, err := dial(t, d, p.address()); err != nil {
			t.Fatal(err)
		}
	}
	until(t, "the oldest is told why", func() bool {
		e := p.seen.last()
		return e != nil && e.Cause == handshake.Canceled && strings.Contains(e.Error(), "2 handshakes were under way")
	})
}
