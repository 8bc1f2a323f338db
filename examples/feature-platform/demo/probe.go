package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	neturl "net/url"
	"os"
	"os/exec"
	"sort"
	"strings"
	"time"
)

// probeResult is what a probe prints, as JSON.
type probeResult struct {
	N     int     `json:"n"`
	P50us float64 `json:"p50us"`
	P99us float64 `json:"p99us"`
	Body  string  `json:"body,omitempty"`
	// Error is how the connection ended, where that was what was asked.
	Error string `json:"error,omitempty"`
	// RefusedMillis and EndedMillis are Unix times in milliseconds.
	Refused float64 `json:"refused,omitempty"`
	Ended   float64 `json:"ended,omitempty"`
}

// probe runs this binary on a host and reads its answer.
func (d *demo) probe(ctx context.Context, host string, into *probeResult, args ...string) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	return output(ctx, into, d.host.in(host, append([]string{self, "probe"}, args...)...)...)
}

func probeMain(args []string) int {
	f := flag.NewFlagSet("probe", flag.ContinueOnError)
	url := f.String("url", "", "measure GETs of this URL on one kept-alive connection")
	n := f.Int("n", 200, "how many")
	body := f.Bool("body", false, "print the body")
	plain := f.String("plaintext", "", "send plain HTTP to HOST:PORT and say how it ends")
	foreign := f.String("foreign", "", "present a certificate of a foreign CA to HOST:PORT and say how it ends")
	watch := f.String("watch", "", "hold a connection to HOST:PORT and open new ones until refused")
	hold := f.String("hold", "", "hold a connection to HOST:PORT and say whether it lived")
	lasting := f.Duration("for", time.Second, "with -hold: how long")
	signal := f.String("signal", "", "with -watch and -hold: touch this file once the connection is held")
	if f.Parse(args) != nil {
		return 2
	}
	var r probeResult
	var err error
	switch {
	case *url != "":
		r, err = measure(*url, *n, *body)
	case *plain != "":
		r.Error = plaintext(*plain)
	case *foreign != "":
		r.Error, err = foreignCA(*foreign)
	case *hold != "":
		r.Error = holdOpen(*hold, *signal, *lasting)
	case *watch != "":
		r, err = watchEnd(*watch, *signal)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	if json.NewEncoder(os.Stdout).Encode(r) != nil {
		return 1
	}
	return 0
}

// measure times n GETs, after a few to warm up, on one connection.
func measure(url string, n int, keep bool) (probeResult, error) {
	client := &http.Client{Timeout: 5 * time.Second}
	var took []float64
	var r probeResult
	for i := range n + min(n/4, 20) {
		started := time.Now()
		response, err := client.Get(url)
		if err != nil {
			return r, err
		}
		body, err := io.ReadAll(io.LimitReader(response.Body, 1<<20))
		response.Body.Close()
		if err != nil {
			return r, err
		}
		if keep {
			r.Body = string(body)
		}
		if i >= min(n/4, 20) {
			took = append(took, float64(time.Since(started).Nanoseconds())/1e3)
		}
	}
	sort.Float64s(took)
	r.N, r.P50us, r.P99us = len(took), took[len(took)/2], took[len(took)*99/100]
	return r, nil
}

// plaintext sends a request without TLS; the answer says how it ended.
func plaintext(address string) string {
	conn, err := net.DialTimeout("tcp", address, 3*time.Second)
	if err != nil {
		return err.Error()
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(5 * time.Second))
	fmt.Fprintf(conn, "GET /v1/features?entity=user-1 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
	got, err := io.ReadAll(io.LimitReader(conn, 1<<20))
	switch {
	case bytes.HasPrefix(got, []byte("HTTP/")):
		return "" // it was served
	case err != nil:
		return err.Error()
	}
	return "connection closed without an answer"
}

// foreignCA offers a client certificate that a CA of our own making signed
// for an identity of the platform.
func foreignCA(address string) (string, error) {
	caKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return "", err
	}
	ca := &x509.Certificate{SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return "", err
	}
	uri, err := neturl.Parse(id("ingestion"))
	if err != nil {
		return "", err
	}
	leaf := &x509.Certificate{SerialNumber: big.NewInt(2), NotBefore: ca.NotBefore, NotAfter: ca.NotAfter, URIs: []*neturl.URL{uri}, KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}
	der, err := x509.CreateCertificate(rand.Reader, leaf, ca, &key.PublicKey, caKey)
	if err != nil {
		return "", err
	}
	// The attacker does not care whom it talks to.
	conn, err := tls.DialWithDialer(&net.Dialer{Timeout: 3 * time.Second}, "tcp", address, &tls.Config{
		InsecureSkipVerify: true, MinVersion: tls.VersionTLS13,
		// Shown although the server asks for certificates of other CAs.
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			return &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, nil
		},
	})
	if err != nil {
		return err.Error(), nil
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(5 * time.Second))
	fmt.Fprintf(conn, "GET /v1/features?entity=user-1 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
	got, err := io.ReadAll(io.LimitReader(conn, 1<<20))
	if bytes.HasPrefix(got, []byte("HTTP/")) {
		return "", nil
	}
	if err != nil {
		return err.Error(), nil
	}
	return "connection closed without an answer", nil
}

const healthRequest = "GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"

// exchange does one request on an open connection and reads its whole answer.
func exchange(conn net.Conn) error {
	_ = conn.SetDeadline(time.Now().Add(3 * time.Second))
	if _, err := io.WriteString(conn, healthRequest); err != nil {
		return err
	}
	response, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	_, err = io.Copy(io.Discard, io.LimitReader(response.Body, 1<<20))
	return err
}

// holdOpen uses one connection before and after a while; the answer says how
// it broke.
func holdOpen(address, ready string, lasting time.Duration) string {
	conn, err := net.DialTimeout("tcp", address, 3*time.Second)
	if err != nil {
		return err.Error()
	}
	defer conn.Close()
	if err := exchange(conn); err != nil {
		return err.Error()
	}
	if err := os.WriteFile(ready, nil, 0o644); err != nil {
		return err.Error()
	}
	time.Sleep(lasting)
	if err := exchange(conn); err != nil {
		return err.Error()
	}
	return ""
}

// watchEnd holds one idle connection and opens a new one every few
// milliseconds, and says when the first new one was refused and when the held
// one was ended. Bounded to 20 seconds.
func watchEnd(address, ready string) (probeResult, error) {
	var r probeResult
	limit := time.Now().Add(20 * time.Second)
	held, err := net.DialTimeout("tcp", address, 3*time.Second)
	if err != nil {
		return r, err
	}
	defer held.Close()
	if err := exchange(held); err != nil {
		return r, fmt.Errorf("before the revocation: %w", err)
	}
	if err := os.WriteFile(ready, nil, 0o644); err != nil {
		return r, err
	}
	ended := make(chan float64, 1)
	go func() { // ends with held
		_ = held.SetDeadline(limit)
		_, err := io.Copy(io.Discard, held)
		var timeout net.Error
		if errors.As(err, &timeout) && timeout.Timeout() {
			ended <- 0
			return
		}
		ended <- now()
	}()
	for time.Now().Before(limit) {
		conn, err := net.DialTimeout("tcp", address, 3*time.Second)
		if err == nil {
			err = exchange(conn)
			conn.Close()
		}
		if err != nil {
			r.Refused, r.Error = now(), err.Error()
			break
		}
		time.Sleep(2 * time.Millisecond)
	}
	r.Ended = <-ended
	return r, nil
}

func now() float64 { return float64(time.Now().UnixMicro()) / 1e3 }

// background starts a probe and returns how to wait for its answer.
func (d *demo) background(ctx context.Context, host string, args ...string) (func() (probeResult, error), error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	argv := d.host.in(host, append([]string{self, "probe"}, args...)...)
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	return func() (probeResult, error) {
		var r probeResult
		if err := cmd.Wait(); err != nil {
			return r, fmt.Errorf("%w: %s", err, strings.TrimSpace(stderr.String()))
		}
		return r, json.Unmarshal(stdout.Bytes(), &r)
	}, nil
}
