package main

import (
	"bufio"
	"debug/elf"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	workloadv1 "github.com/legation-io/legation/sdk/api/workload/v1"
	"github.com/legation-io/legation/sdk/internal/fakeapi"
	"github.com/legation-io/legation/sdk/internal/pkitest"
)

// maxBytes is what the program may weigh, stripped.
const maxBytes = 8_000_000

func build(t *testing.T, arch string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "hello-mtls")
	cmd := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w", "-o", path, ".")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOARCH="+arch, "GOARM=7")
	if talk, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, talk)
	}
	return path
}

func TestItIsOneSmallStaticFileEverywhere(t *testing.T) {
	for _, arch := range []string{"amd64", "arm64", "arm"} {
		t.Run(arch, func(t *testing.T) {
			path := build(t, arch)
			info, err := os.Stat(path)
			if err != nil {
				t.Fatal(err)
			}
			t.Logf("%.2f MB", float64(info.Size())/1e6)
			if info.Size() > maxBytes {
				t.Errorf("%d bytes, at most %d", info.Size(), maxBytes)
			}
			file, err := elf.Open(path)
			if err != nil {
				t.Fatal(err)
			}
			defer file.Close()
			for _, p := range file.Progs {
				if p.Type == elf.PT_INTERP || p.Type == elf.PT_DYNAMIC {
					t.Error("it needs a dynamic linker")
				}
			}
		})
	}
}

func TestItSaysHello(t *testing.T) {
	path := build(t, "")
	d := pkitest.New(t, "example.org", nil)
	api := fakeapi.New(t)
	api.Revoke(&workloadv1.RevocationSet{})
	api.Answer(fakeapi.X509(t, d, d.Issue("/hello", nil)))
	api.Start(true)
	for name, flags := range map[string][]string{"TLS 1.3": nil, "TLS 1.2": {"-tls12"}} {
		t.Run(name, func(t *testing.T) {
			common := append([]string{"-socket", api.Addr(), "-peer", "spiffe://example.org/hello"}, flags...)
			server := exec.CommandContext(t.Context(), path, append(common, "-listen", "127.0.0.1:0")...)
			out, err := server.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			server.Stderr = os.Stderr
			if err := server.Start(); err != nil {
				t.Fatal(err)
			}
			defer func() {
				_ = server.Process.Signal(os.Interrupt)
				stuck := time.AfterFunc(time.Minute, func() { _ = server.Process.Kill() })
				defer stuck.Stop()
				if err := server.Wait(); err != nil {
					t.Errorf("the server ended with %v", err)
				}
			}()
			line, err := bufio.NewReader(out).ReadString('\n')
			if err != nil {
				t.Fatal(err)
			}
			addr := strings.TrimSpace(strings.TrimPrefix(line, "listening on "))
			said, err := exec.CommandContext(t.Context(), path, append(common, "-to", addr)...).CombinedOutput()
			if err != nil {
				t.Fatalf("%v\n%s", err, said)
			}
			t.Logf("%s", said)
			suite := ", TLS_AES_256_GCM_SHA384"
			if flags != nil {
				suite = ", TLS_ECDHE_ECDSA_WITH_AES_"
			}
			for _, want := range []string{`spiffe://example.org/hello said "hello" (` + name + suite, "bytes on the wire"} {
				if !strings.Contains(string(said), want) {
					t.Errorf("it did not say %q:\n%s", want, said)
				}
			}
			// To another than was asked for it says nothing.
			wrong := append([]string{"-socket", api.Addr(), "-peer", "spiffe://example.org/other", "-to", addr}, flags...)
			if said, err := exec.CommandContext(t.Context(), path, wrong...).CombinedOutput(); err == nil || !strings.Contains(string(said), "not authorised") {
				t.Errorf("%v\n%s", err, said)
			}
		})
	}
	for name, args := range map[string][]string{
		"-peer is missing":            {"-to", "127.0.0.1:1"},
		"give one of -to and -listen": {"-peer", "spiffe://example.org/hello"},
		"no such file":                {"-peer", "spiffe://example.org/hello", "-to", "127.0.0.1:1", "-socket", "unix:///nowhere/s"},
	} {
		if said, err := exec.CommandContext(t.Context(), path, args...).CombinedOutput(); err == nil || !strings.Contains(string(said), name) {
			t.Errorf("%v: %v\n%s", args, err, said)
		}
	}
}
