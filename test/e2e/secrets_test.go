package e2e

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"io/fs"
	"math/big"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/spiffe/go-spiffe/v2/svid/jwtsvid"
	"github.com/spiffe/go-spiffe/v2/workloadapi"

	"github.com/legation-io/legation/test/e2e/world"
)

// forms are the ways in which a secret of some bytes could be written.
func forms(secret []byte) map[string][]byte {
	m := map[string][]byte{
		"raw": secret, "hex": []byte(hex.EncodeToString(secret)), "HEX": []byte(strings.ToUpper(hex.EncodeToString(secret))),
		"decimal": []byte(new(big.Int).SetBytes(secret).String()), "%v": []byte(strings.Trim(fmt.Sprint(secret), "[]")), "%#v": []byte(strings.Trim(fmt.Sprintf("%#v", secret), "[]byte{}")),
		"%q": []byte(strings.Trim(fmt.Sprintf("%q", secret), `"`)),
	}
	// Base64 at each alignment, without the ends that depend on the neighbours.
	for shift := range 3 {
		padded := append(make([]byte, shift), secret...)
		for name, enc := range map[string]*base64.Encoding{"base64": base64.RawStdEncoding, "base64url": base64.RawURLEncoding} {
			text := enc.EncodeToString(padded)
			m[fmt.Sprintf("%s+%d", name, shift)] = []byte(text[(shift*8+5)/6+1 : len(text)-2])
		}
	}
	return m
}

// canary is one secret that must be nowhere.
type canary struct {
	name  string
	forms map[string][]byte
}

func textual(name, secret string) canary {
	f := forms([]byte(secret))
	delete(f, "decimal")
	return canary{name, f}
}

// TestA22 runs a slice of the platform at debug level and looks for secrets
// wherever people and machines read.
func TestA22NoSecretIsWrittenAnywhere(t *testing.T) {
	t.Parallel()
	p := newPair(t, "--log-level", "debug")
	used, err := os.ReadFile(p.Path("n1.token"))
	if err != nil {
		t.Fatal(err)
	}
	spare := p.Token("n9")
	kek, err := os.ReadFile(filepath.Join(p.Server.DataDir, "kek"))
	if err != nil {
		t.Fatal(err)
	}
	seal, err := os.ReadFile(filepath.Join(p.node.DataDir, "cache", "seal.key"))
	if err != nil {
		t.Fatal(err)
	}
	canaries := []canary{
		textual("a join token that was used", strings.TrimSpace(string(used))), textual("a join token", spare.Token),
		{"the key-encryption key", forms(kek)}, {"the key of the sealed cache", forms(seal)},
	}
	onDisk := 0 // from here on canaries that may lie on no disk at all
	svid, _ := me(t, p.World, p.node)
	onDisk = len(canaries)
	canaries = append(canaries, key(t, "a workload's private key", svid.PrivateKey))
	ctx, cancel := context.WithTimeout(context.Background(), world.Patience)
	defer cancel()
	for i := range 3 {
		token, err := workloadapi.FetchJWTSVID(ctx, jwtsvid.Params{Audience: fmt.Sprintf("aud-%d", i)}, workloadapi.WithAddr("unix://"+p.node.Socket))
		if err != nil {
			t.Fatal(err)
		}
		text := token.Marshal()
		canaries = append(canaries, canary{"a JWT-SVID", map[string][]byte{"its text": []byte(text), "its signature": []byte(text[strings.LastIndexByte(text, '.')+1:])}})
		if _, err := workloadapi.ValidateJWTSVID(ctx, text, fmt.Sprintf("aud-%d", i), workloadapi.WithAddr("unix://"+p.node.Socket)); err != nil {
			t.Fatal(err)
		}
		_, _ = workloadapi.ValidateJWTSVID(ctx, text+"x", "other", workloadapi.WithAddr("unix://"+p.node.Socket)) // a refusal is logged
	}
	// Rotation, refusals, a revocation, a restart, a thief's token.
	p.Apply(world.IdentityTTL("bob", "n1", "2h", "unix:path:"+p.As("bob")))
	p.revoke("--serial", hex.EncodeToString(svid.Certificates[0].SerialNumber.Bytes()))
	thief := p.NewNode("thief", "--join-token-file", p.Path("n1.token"), "--bundle-hash", spare.BundleHash, "--log-level", "debug")
	thief.Launch()
	thief.Exit(world.Patience)
	if err := p.CLI("token", "create", "--node", "n9", "--ttl", "-1s"); err.Code == 0 {
		t.Error("a token that expired before it was made")
	}
	p.node.Kill()
	p.node.Start()
	p.flows()

	seen := p.everythingReadable(t)
	for _, c := range canaries {
		for form, bytesOf := range c.forms {
			for where, text := range seen {
				if bytes.Contains(text, bytesOf) {
					t.Errorf("%s (%s) is in %s", c.name, form, where)
				}
			}
		}
	}
	// What must not lie on a disk in clear either.
	err = filepath.WalkDir(p.Dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() || strings.HasPrefix(d.Name(), "bin-") {
			return err
		}
		raw, err := os.ReadFile(path)
		for _, c := range canaries[onDisk:] {
			for form, bytesOf := range c.forms {
				if bytes.Contains(raw, bytesOf) {
					t.Errorf("%s (%s) is on the disk in %s", c.name, form, path)
				}
			}
		}
		for _, c := range canaries[:2] { // tokens: their own files, and hashes in the store
			if filepath.Ext(path) != ".token" && bytes.Contains(raw, c.forms["raw"]) {
				t.Errorf("%s is on the disk in %s", c.name, path)
			}
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

func key(t testing.TB, name string, k any) canary {
	t.Helper()
	ec, ok := k.(*ecdsa.PrivateKey)
	if !ok {
		t.Fatalf("%s is a %T", name, k)
	}
	scalar, err := ec.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	c := canary{name, forms(scalar)}
	der, err := x509.MarshalPKCS8PrivateKey(k)
	if err != nil {
		t.Fatal(err)
	}
	c.forms["PKCS8"] = der
	c.forms["PKCS8 in base64"] = []byte(base64.StdEncoding.EncodeToString(der))
	c.forms["a PEM line"] = []byte(base64.StdEncoding.EncodeToString(der)[64:128])
	return c
}

// everythingReadable collects logs, metrics pages, answers of commands, and
// what /proc shows of each process.
func (p *pair) everythingReadable(t *testing.T) map[string][]byte {
	t.Helper()
	seen := map[string][]byte{}
	logs, _ := filepath.Glob(p.Path("*.log"))
	for _, l := range logs {
		raw, err := os.ReadFile(l)
		if err != nil {
			t.Fatal(err)
		}
		seen[filepath.Base(l)] = raw
	}
	if !bytes.Contains(seen["cp.log"], []byte("level=DEBUG")) || !bytes.Contains(seen["n1.log"], []byte("level=DEBUG")) {
		t.Error("there is nothing at debug level in the logs")
	}
	for _, url := range []string{p.Server.Metrics + "/metrics", p.node.Metrics + "/metrics", p.node.Metrics + "/metrics/envoy"} {
		response, err := http.Get("http://" + url)
		if err != nil {
			t.Fatal(err)
		}
		var page bytes.Buffer
		_, _ = page.ReadFrom(response.Body)
		response.Body.Close()
		seen[url] = page.Bytes()
	}
	agent := []string{"--agent", "unix://" + p.node.Admin}
	for _, args := range [][]string{
		{"status"}, {"status", "-o", "json"}, {"node", "list", "-o", "json"}, {"node", "show", "n1"}, {"cert", "list", "-o", "yaml", "--expired"}, {"get", "all", "-A", "-o", "yaml"}, {"bundle", "show", "--format", "spiffe"},
		append(agent, "status", "--node", "-o", "json"), append(agent, "why", "--pid", fmt.Sprint(os.Getpid()), "-o", "json"), append(agent, "connections", "-o", "json"), append(agent, "connections", "--failures", "-o", "json"),
	} {
		r := p.CLI(args...)
		seen["legation "+strings.Join(args, " ")] = []byte(r.Stdout + r.Stderr)
	}
	for _, proc := range []int{p.Server.PID, p.node.PID, p.alice.PID, p.alice.Envoy(), p.alice.Program()} {
		for _, f := range []string{"cmdline", "environ"} {
			raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/%s", proc, f))
			if err != nil {
				t.Fatal(err)
			}
			seen[fmt.Sprintf("/proc/%d/%s of %s", proc, f, world.Exe(proc))] = raw
		}
	}
	return seen
}

// A process of the same user must not read what the agent and the control
// plane hold in memory, and no core file may hold it.
func TestA22AnotherProcessOfTheUserReadsNoMemory(t *testing.T) {
	t.Parallel()
	const uid = 65533
	as := func(argv ...string) []string {
		return append([]string{"setpriv", "--reuid", fmt.Sprint(uid), "--regid", fmt.Sprint(uid), "--clear-groups"}, argv...)
	}
	w := world.New(t)
	w.Server = w.NewServer("cp")
	if err := os.Mkdir(w.Server.DataDir, 0o700); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{w.Dir, w.Server.DataDir} {
		if err := os.Chown(path, uid, uid); err != nil {
			t.Fatal(err)
		}
	}
	w.Server.Process = w.Run("cp", as(w.Server.Argv()...))
	w.Server.Serves()
	n := w.NewNode("n1")
	n.Admit()
	if err := os.Chown(w.Path("n1.token"), uid, uid); err != nil {
		t.Fatal(err)
	}
	n.Process = w.Run("n1", as(n.Argv()...))
	n.Connected()
	plain := w.Run("plain", as("/bin/sleep", "60")) // to show that the test can see anything at all
	world.Until(t, world.Patience, "the plain process runs", func() error {
		if !strings.HasSuffix(world.Exe(plain.PID), "sleep") {
			return fmt.Errorf("it is %q", world.Exe(plain.PID))
		}
		return nil
	})
	defer plain.Signal(syscall.SIGKILL)
	read := func(pid int, file string) error {
		argv := as("/bin/dd", fmt.Sprintf("if=/proc/%d/%s", pid, file), "of=/dev/null", "bs=1", "count=1")
		out, err := exec.Command(argv[0], argv[1:]...).CombinedOutput()
		if err != nil {
			return fmt.Errorf("%w: %s", err, out)
		}
		return nil
	}
	if err := read(plain.PID, "environ"); err != nil {
		t.Fatalf("the check itself does not work: %v", err)
	}
	for name, pid := range map[string]int{"the control plane": w.Server.PID, "the agent": n.PID} {
		for _, file := range []string{"environ", "mem", "maps"} {
			if err := read(pid, file); err == nil || !strings.Contains(err.Error(), "ermi") && !strings.Contains(err.Error(), "not permitted") {
				t.Errorf("%s: /proc/PID/%s: %v; want permission denied", name, file, err)
			}
		}
		raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/limits", pid))
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(raw)) {
			if f := strings.Fields(line); strings.HasPrefix(line, "Max core file size") && (f[4] != "0" || f[5] != "0") {
				t.Errorf("%s may write core files: %s", name, line)
			}
		}
		// An abort leaves no core file behind.
		_ = syscall.Kill(pid, syscall.SIGQUIT)
	}
	world.Until(t, world.Patience, "both ended by SIGQUIT", func() error {
		if !w.Server.Ended() || !n.Ended() {
			return fmt.Errorf("still there")
		}
		return nil
	})
	cores, _ := filepath.Glob(w.Path("core*"))
	if len(cores) > 0 {
		t.Errorf("core files: %v", cores)
	}
}
