package deptest

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/go-jose/go-jose/v4"
)

// buildTags are those of the Makefile.
const buildTags = "grpcnotrace"

// maxAgentBytes is what the agent may weigh, stripped.
const maxAgentBytes = 30_000_000

var built = sync.OnceValues(func() (map[string][]byte, error) {
	dir, err := os.MkdirTemp("", "deptest")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	out := map[string][]byte{}
	for _, name := range []string{"legation", "legation-agent"} {
		path := filepath.Join(dir, name)
		cmd := exec.Command("go", "build", "-trimpath", "-tags", buildTags, "-ldflags", "-s -w", "-o", path, "./cmd/"+name)
		cmd.Dir = "../.."
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
		if talk, err := cmd.CombinedOutput(); err != nil {
			return nil, fmt.Errorf("build %s: %w\n%s", name, err, talk)
		}
		if out[name], err = os.ReadFile(path); err != nil {
			return nil, err
		}
	}
	return out, nil
})

func binaries(t *testing.T) map[string][]byte {
	t.Helper()
	b, err := built()
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestTheMakefileBuildsWithTheTagsTestedHere(t *testing.T) {
	raw, err := os.ReadFile(filepath.Join(root(t), "Makefile"))
	if err != nil {
		t.Fatal(err)
	}
	if !regexp.MustCompile(`(?m)^TAGS := ` + buildTags + `$`).Match(raw) {
		t.Errorf("the Makefile does not build with -tags %s", buildTags)
	}
}

func TestTheAgentIsSmall(t *testing.T) {
	size := len(binaries(t)["legation-agent"])
	t.Logf("%.1f MB", float64(size)/1e6)
	if size >= maxAgentBytes {
		t.Errorf("legation-agent is %d bytes stripped; at most %d", size, maxAgentBytes)
	}
}

var (
	pemBlock = regexp.MustCompile(`-----BEGIN [A-Z0-9 ]*PRIVATE KEY-----(?:\r?\n|\\n)[A-Za-z0-9+/=:,\-\s\\]{32,}?-----END [A-Z0-9 ]*PRIVATE KEY-----`)
	jwk      = regexp.MustCompile(`\{[^{}]{0,900}"d"\s*:\s*"[A-Za-z0-9_-]{16,}"[^{}]{0,900}\}`)
)

// privateKeys finds private keys in bytes: PEM blocks, JSON Web Keys, DER.
func privateKeys(raw []byte) []string {
	var found []string
	for _, m := range pemBlock.FindAllIndex(raw, -1) {
		found = append(found, fmt.Sprintf("PEM block at %d: %.40s", m[0], raw[m[0]:m[1]]))
	}
	for _, m := range jwk.FindAllIndex(raw, -1) {
		var k jose.JSONWebKey
		if json.Unmarshal(raw[m[0]:m[1]], &k) == nil && !k.IsPublic() {
			found = append(found, fmt.Sprintf("JSON Web Key at %d", m[0]))
		}
	}
	for i := 0; i+8 < len(raw); i++ {
		if raw[i] != 0x30 { // SEQUENCE
			continue
		}
		if key := parseDER(raw[i:]); key != "" {
			found = append(found, fmt.Sprintf("%s at %d", key, i))
		}
	}
	return found
}

// parseDER reads the sequence that raw begins with as a private key: a length,
// then the version, an INTEGER 0 or 1.
func parseDER(raw []byte) string {
	length, header := int(raw[1]), 2
	switch {
	case raw[1] == 0x81:
		length, header = int(raw[2]), 3
	case raw[1] == 0x82:
		length, header = int(raw[2])<<8|int(raw[3]), 4
	case raw[1] > 0x82 || raw[1] < 0x20:
		return ""
	}
	if header+length > len(raw) || !bytes.HasPrefix(raw[header:], []byte{2, 1}) || raw[header+2] > 1 {
		return ""
	}
	raw = raw[:header+length]
	if _, err := x509.ParseECPrivateKey(raw); err == nil {
		return "SEC 1 key"
	}
	if _, err := x509.ParsePKCS8PrivateKey(raw); err == nil {
		return "PKCS #8 key"
	}
	if _, err := x509.ParsePKCS1PrivateKey(raw); err == nil {
		return "PKCS #1 key"
	}
	return ""
}

func TestA52NoPrivateKeyIsBuiltIn(t *testing.T) {
	for name, raw := range binaries(t) {
		for _, f := range privateKeys(raw) {
			t.Errorf("%s contains a private key: %s", name, f)
		}
	}
}

func TestA52AKeyThatIsBuiltInWouldBeFound(t *testing.T) {
	ec, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	_, ed, _ := ed25519.GenerateKey(rand.Reader)
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	must := func(b []byte, err error) []byte {
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	sec1, pkcs8, edDER := must(x509.MarshalECPrivateKey(ec)), must(x509.MarshalPKCS8PrivateKey(ec)), must(x509.MarshalPKCS8PrivateKey(ed))
	for name, key := range map[string][]byte{
		"SEC 1": sec1, "PKCS #8": pkcs8, "Ed25519": edDER, "PKCS #1": x509.MarshalPKCS1PrivateKey(rsaKey),
		"PKCS #8 RSA":                     must(x509.MarshalPKCS8PrivateKey(rsaKey)),
		"PEM":                             pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: sec1}),
		"PEM in a string literal of JSON": bytes.ReplaceAll(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pkcs8}), []byte("\n"), []byte(`\n`)),
		"JWK":                             must(json.Marshal(jose.JSONWebKey{Key: ec})),
	} {
		planted := append(append(bytes.Repeat([]byte("program text\x00"), 100), key...), bytes.Repeat([]byte("\x00more"), 100)...)
		if len(privateKeys(planted)) == 0 {
			t.Errorf("a planted %s key is not found", name)
		}
	}
}

func TestA63EveryModuleStatesAMinimumToolchain(t *testing.T) {
	stated := regexp.MustCompile(`(?m)^(?:go|toolchain go) ?(\d+)\.(\d+)\.(\d+)$`)
	for _, dir := range []string{".", "sdk", "test", "tools"} {
		raw, err := os.ReadFile(filepath.Join(root(t), dir, "go.mod"))
		if err != nil {
			t.Fatal(err)
		}
		best := 0
		for _, m := range stated.FindAllStringSubmatch(string(raw), -1) {
			v := 0
			for _, part := range m[1:] {
				n, _ := strconv.Atoi(part)
				v = v*1000 + n
			}
			best = max(best, v)
		}
		if best < 1_026_006 {
			t.Errorf("%s/go.mod states no toolchain of at least 1.26.6: %s", dir, strings.SplitN(string(raw), "require", 2)[0])
		}
	}
}
