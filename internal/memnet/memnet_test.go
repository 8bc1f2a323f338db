package memnet_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/net/nettest"

	"github.com/legation-io/legation/internal/memnet"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func open(t *testing.T, tr memnet.Transport, network, addr string) net.Listener {
	t.Helper()
	l, err := tr.Listen(network, addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

func link(t *testing.T, from memnet.Transport, l net.Listener) (near, far net.Conn) {
	t.Helper()
	near, err := from.DialContext(t.Context(), l.Addr().Network(), l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	far, err = l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { near.Close(); far.Close() })
	return near, far
}

func TestConnectionsBehaveAsThoseOfPackageNet(t *testing.T) {
	for _, network := range []string{"tcp", "unix"} {
		t.Run(network, func(t *testing.T) {
			nettest.TestConn(t, func() (net.Conn, net.Conn, func(), error) {
				n := memnet.New()
				l, err := n.Listen(network, "127.0.0.1:0")
				if err != nil {
					return nil, nil, nil, err
				}
				near, err := n.DialContext(t.Context(), network, l.Addr().String())
				if err != nil {
					return nil, nil, nil, err
				}
				far, err := l.Accept()
				return near, far, func() { near.Close(); far.Close(); l.Close() }, err
			})
		})
	}
}

func TestAddresses(t *testing.T) {
	n := memnet.New()
	web := n.Host("web")
	l := open(t, web, "tcp", ":8443")
	if got := l.Addr().String(); got != "web:8443" {
		t.Errorf("web listens at %s", got)
	}
	if _, err := web.Listen("tcp", "127.0.0.1:8443"); !errors.Is(err, syscall.EADDRINUSE) {
		t.Errorf("a second listener: %v", err)
	}
	open(t, n.Host("db"), "tcp", "0.0.0.0:8443") // another host has its own ports
	if _, err := n.Host("web").DialContext(t.Context(), "tcp", "localhost:8443"); err != nil {
		t.Errorf("dial its own loopback: %v", err)
	}
	if _, err := n.DialContext(t.Context(), "tcp", "localhost:8443"); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("dial where nobody listens: %v", err)
	}
	near, far := link(t, n.Host("10.0.0.7"), open(t, n.Host("10.0.0.1"), "tcp", ":0"))
	if ip := far.RemoteAddr().(*net.TCPAddr).IP.String(); ip != "10.0.0.7" {
		t.Errorf("the far end sees %s", ip)
	}
	if near.RemoteAddr().String() != far.LocalAddr().String() {
		t.Errorf("the ends disagree: %s and %s", near.RemoteAddr(), far.LocalAddr())
	}
	open(t, web, "unix", "/run/x.sock")
	if _, err := n.Host("db").DialContext(t.Context(), "unix", "/run/x.sock"); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("dial another host's unix socket: %v", err)
	}
}

func TestHalfClose(t *testing.T) {
	n := memnet.New()
	near, far := link(t, n, open(t, n, "tcp", ":0"))
	if _, err := near.Write([]byte("question")); err != nil {
		t.Fatal(err)
	}
	if err := near.(interface{ CloseWrite() error }).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if got, err := io.ReadAll(far); err != nil || string(got) != "question" {
		t.Fatalf("read %q, %v", got, err)
	}
	if _, err := near.Write([]byte("x")); !errors.Is(err, syscall.EPIPE) {
		t.Errorf("write after CloseWrite: %v", err)
	}
	if _, err := far.Write([]byte("answer")); err != nil {
		t.Fatal(err)
	}
	far.Close()
	if got, err := io.ReadAll(near); err != nil || string(got) != "answer" {
		t.Fatalf("read %q, %v", got, err)
	}
}

func TestAClosedListenerRefusesAndResets(t *testing.T) {
	n := memnet.New()
	l := open(t, n, "tcp", ":0")
	waiting, err := n.DialContext(t.Context(), "tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer waiting.Close()
	l.Close()
	if _, err := l.Accept(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("accept: %v", err)
	}
	if _, err := waiting.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("read from a connection that was never accepted: %v", err)
	}
	if _, err := n.DialContext(t.Context(), "tcp", l.Addr().String()); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("dial: %v", err)
	}
	open(t, n, "tcp", l.Addr().String()) // the address is free again
}

func TestAPartitionHoldsBytesUntilItHeals(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := memnet.New()
		a, b := n.Host("a"), n.Host("b")
		l, err := b.Listen("tcp", ":1")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		near, err := a.DialContext(t.Context(), "tcp", "b:1")
		if err != nil {
			t.Fatal(err)
		}
		defer near.Close()
		far, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		defer far.Close()

		n.Partition("a", "b")
		if _, err := near.Write([]byte("late")); err != nil {
			t.Fatalf("a write into a partition: %v", err)
		}
		far.SetReadDeadline(time.Now().Add(time.Hour))
		begin := time.Now()
		if _, err := far.Read(make([]byte, 8)); !errors.Is(err, os.ErrDeadlineExceeded) || time.Since(begin) != time.Hour {
			t.Errorf("read from the other side of a partition: %v after %s", err, time.Since(begin))
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		if _, err := a.DialContext(ctx, "tcp", "b:1"); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("dial over a partition: %v", err)
		}
		far.SetReadDeadline(time.Time{})
		var wg sync.WaitGroup
		wg.Go(func() {
			buf := make([]byte, 8)
			if k, err := far.Read(buf); err != nil || string(buf[:k]) != "late" {
				t.Errorf("after the partition: %q, %v", buf[:k], err)
			}
		})
		wg.Go(func() {
			c, err := a.DialContext(t.Context(), "tcp", "b:1")
			if err != nil {
				t.Errorf("dial while it heals: %v", err)
				return
			}
			c.Close()
		})
		synctest.Wait()
		n.Heal("a", "b")
		wg.Wait()
	})
}

func TestAHostCutOffFromEveryone(t *testing.T) {
	n := memnet.New()
	open(t, n.Host("b"), "tcp", ":1")
	open(t, n.Host("a"), "tcp", ":1")
	n.Partition("a", memnet.Everyone)
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if _, err := n.Host("c").DialContext(ctx, "tcp", "a:1"); err == nil {
		t.Error("c reached a")
	}
	if _, err := n.Host("c").DialContext(t.Context(), "tcp", "b:1"); err != nil {
		t.Errorf("c did not reach b: %v", err)
	}
	if _, err := n.Host("a").DialContext(t.Context(), "tcp", "localhost:1"); err != nil {
		t.Errorf("a did not reach itself: %v", err)
	}
}

func TestResetBreaksBothEnds(t *testing.T) {
	n := memnet.New()
	near, far := link(t, n.Host("a"), open(t, n.Host("b"), "tcp", ":1"))
	_, bystander := link(t, n.Host("c"), open(t, n.Host("b"), "tcp", ":2"))
	if got := n.Reset("a", "b"); got != 1 {
		t.Errorf("%d connections were reset", got)
	}
	for _, c := range []net.Conn{near, far} {
		if _, err := c.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("read: %v", err)
		}
		if _, err := c.Write([]byte("x")); !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("write: %v", err)
		}
	}
	if _, err := bystander.Write([]byte("x")); err != nil {
		t.Errorf("a bystander: %v", err)
	}
}

func TestHTTPOverTLSCrossesIt(t *testing.T) {
	n := memnet.New()
	srv := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(w, r.Body)
	}))
	srv.Listener.Close()
	srv.Listener = open(t, n, "tcp", ":0")
	srv.EnableHTTP2 = true
	srv.StartTLS()
	defer srv.Close()
	pool := srv.Client().Transport.(*http.Transport).TLSClientConfig.RootCAs
	tr := &http.Transport{DialContext: n.DialContext, ForceAttemptHTTP2: true, TLSClientConfig: &tls.Config{RootCAs: pool, ServerName: "example.com"}}
	defer tr.CloseIdleConnections()
	body := bytes.Repeat([]byte("0123456789"), 100_000)
	resp, err := (&http.Client{Transport: tr}).Post(srv.URL, "text/plain", bytes.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	got, err := io.ReadAll(resp.Body)
	if err != nil || !bytes.Equal(got, body) || resp.ProtoMajor != 2 {
		t.Errorf("%s: %d bytes came back of %d, %v", resp.Proto, len(got), len(body), err)
	}
}
