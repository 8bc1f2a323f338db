package aes256gcm

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"math/big"
	"net"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/legation-io/legation/sdk/internal/suites"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestItIsActiveAndKnownToBe(t *testing.T) {
	if !Active() || !suites.Active() {
		t.Fatalf("Active %v, registered %v", Active(), suites.Active())
	}
}

// What a future Go might do: ignore one variable or both.
func TestTheProbeNoticesSuitesThatAreNotObeyed(t *testing.T) {
	const chacha, aes128, aes256 = tls.TLS_CHACHA20_POLY1305_SHA256, tls.TLS_AES_128_GCM_SHA256, tls.TLS_AES_256_GCM_SHA384
	all, noAES := []uint16{aes128, aes256, chacha}, []uint16{chacha, aes128, aes256}
	set := func(a, b []uint16) { defaultCipherSuitesTLS13, defaultCipherSuitesTLS13NoAES = a, b }
	only := []uint16{aes256}
	defer set(only, only)

	set(all, noAES)
	if got := offered(); len(got) != 3 {
		t.Errorf("Go's own client offers %x", got)
	}
	for _, suite := range all {
		if !accepted(suite) {
			t.Errorf("Go's own server refuses %s: the probe's hello is wrong", tls.CipherSuiteName(suite))
		}
	}
	set(only, noAES)
	if !accepted(chacha) {
		t.Error("the sibling does not matter any more; the probe tests nothing")
	}
	set(only, only)
	if accepted(chacha) || accepted(aes128) || !accepted(aes256) || !accepted(chacha, aes256) {
		t.Error("the variables are set and not obeyed")
	}
}

// server accepts connections with a certificate of its own and answers none.
func server(t *testing.T, check func(tls.ConnectionState)) string {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), DNSNames: []string{"localhost"}}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	l, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}})
	if err != nil {
		t.Fatal(err)
	}
	var done sync.WaitGroup
	done.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			done.Go(func() {
				defer c.Close()
				c.SetDeadline(time.Now().Add(time.Minute))
				if c.(*tls.Conn).Handshake() == nil {
					check(c.(*tls.Conn).ConnectionState())
				}
			})
		}
	})
	t.Cleanup(func() { l.Close(); done.Wait() })
	return l.Addr().String()
}

func TestOpenSSLGetsAES256OrNothing(t *testing.T) {
	if _, err := exec.LookPath("openssl"); err != nil {
		t.Fatal("openssl is not installed")
	}
	address := server(t, func(cs tls.ConnectionState) {
		if cs.CipherSuite != tls.TLS_AES_256_GCM_SHA384 {
			t.Errorf("a connection with %s", tls.CipherSuiteName(cs.CipherSuite))
		}
	})
	for _, tt := range []struct {
		name, offer string
		refused     bool
	}{
		{"ChaCha20 first, AES-256 last", "TLS_CHACHA20_POLY1305_SHA256:TLS_AES_128_GCM_SHA256:TLS_AES_256_GCM_SHA384", false},
		{"AES-128 first, AES-256 last", "TLS_AES_128_GCM_SHA256:TLS_AES_256_GCM_SHA384", false},
		{"AES-256 alone", "TLS_AES_256_GCM_SHA384", false},
		{"ChaCha20 alone", "TLS_CHACHA20_POLY1305_SHA256", true},
		{"AES-128 alone", "TLS_AES_128_GCM_SHA256", true},
		{"AES-128 and ChaCha20", "TLS_AES_128_GCM_SHA256:TLS_CHACHA20_POLY1305_SHA256", true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
			defer cancel()
			out, _ := exec.CommandContext(ctx, "openssl", "s_client", "-connect", address, "-tls1_3", "-ciphersuites", tt.offer).CombinedOutput()
			got := strings.Contains(string(out), "Cipher is TLS_AES_256_GCM_SHA384")
			if refused := strings.Contains(string(out), "handshake failure"); got == tt.refused || refused != tt.refused {
				t.Errorf("offered %s; want refused %v; openssl says:\n%s", tt.offer, tt.refused, out)
			}
		})
	}
}

func TestBothEndsOfThisProcessUseAES256(t *testing.T) {
	seen := make(chan uint16, 1)
	address := server(t, func(cs tls.ConnectionState) { seen <- cs.CipherSuite })
	c, err := (&tls.Dialer{NetDialer: &net.Dialer{Timeout: 10 * time.Second}, Config: &tls.Config{InsecureSkipVerify: true}}).Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if mine, theirs := c.(*tls.Conn).ConnectionState().CipherSuite, <-seen; mine != tls.TLS_AES_256_GCM_SHA384 || theirs != mine {
		t.Errorf("client %s, server %s", tls.CipherSuiteName(mine), tls.CipherSuiteName(theirs))
	}
}

func FuzzClientHello(f *testing.F) {
	f.Add([]byte{0x13, 0x02})
	f.Fuzz(func(t *testing.T, raw []byte) {
		if len(raw) > 200 {
			return
		}
		var suites []uint16
		for n := 0; n+1 < len(raw); n += 2 {
			suites = append(suites, uint16(raw[n])<<8|uint16(raw[n+1]))
		}
		want := false
		for _, s := range suites {
			want = want || s == tls.TLS_AES_256_GCM_SHA384
		}
		if accepted(suites...) != want {
			t.Errorf("suites %x: accepted %v", suites, !want)
		}
	})
}
