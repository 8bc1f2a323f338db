package policy_test

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/open-policy-agent/opa/v1/ast"
	"github.com/open-policy-agent/opa/v1/bundle"
	"github.com/open-policy-agent/opa/v1/util"

	"github.com/legation-io/legation/sdk/policy"
)

// signer makes bundles by hand, so that each part of one can be wrong.
type signer struct {
	key crypto.Signer
	id  string
	alg jose.SignatureAlgorithm
}

func newSigner(t testing.TB) *signer {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return &signer{key, "main", jose.ES256}
}

func (s *signer) public() policy.Key {
	return policy.Key{ID: s.id, Algorithm: string(s.alg), Public: s.key.Public()}
}

func (s *signer) token(t testing.TB, payload any) string {
	t.Helper()
	raw, err := json.Marshal(payload)
	if err != nil {
		t.Fatal(err)
	}
	j, err := jose.NewSigner(jose.SigningKey{Algorithm: s.alg, Key: s.key}, (&jose.SignerOptions{}).WithHeader("kid", s.id))
	if err != nil {
		t.Fatal(err)
	}
	jws, err := j.Sign(raw)
	if err != nil {
		t.Fatal(err)
	}
	token, err := jws.CompactSerialize()
	if err != nil {
		t.Fatal(err)
	}
	return token
}

type files map[string]string

func (f files) with(name, content string) files {
	out := maps.Clone(f)
	out[name] = content
	return out
}

func (f files) without(name string) files {
	out := maps.Clone(f)
	delete(out, name)
	return out
}

func listed(t testing.TB, f files, alg string) []map[string]string {
	t.Helper()
	var out []map[string]string
	h, err := bundle.NewSignatureHasher(bundle.HashingAlgorithm(alg))
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range slices.Sorted(maps.Keys(f)) {
		var v any = []byte(f[name])
		if strings.HasSuffix(name, ".json") || name == ".manifest" {
			if err := util.UnmarshalJSON([]byte(f[name]), &v); err != nil {
				v = []byte(f[name])
			}
		}
		sum, err := h.HashFile(v)
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, map[string]string{"name": name, "hash": hex.EncodeToString(sum), "algorithm": alg})
	}
	return out
}

func (s *signer) sign(t testing.TB, f files) files {
	t.Helper()
	return f.with(".signatures.json", fmt.Sprintf(`{"signatures":[%q]}`, s.token(t, map[string]any{"files": listed(t, f, "SHA-256")})))
}

func pack(t testing.TB, f files, extra ...*tar.Header) []byte {
	t.Helper()
	var b bytes.Buffer
	z := gzip.NewWriter(&b)
	w := tar.NewWriter(z)
	for _, name := range slices.Sorted(maps.Keys(f)) {
		if err := w.WriteHeader(&tar.Header{Name: "/" + name, Typeflag: tar.TypeReg, Mode: 0o600, Size: int64(len(f[name]))}); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write([]byte(f[name])); err != nil {
			t.Fatal(err)
		}
	}
	for _, h := range extra {
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(bytes.Repeat([]byte("x"), int(h.Size))); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func revision(n int, rules string) files {
	return files{".manifest": fmt.Sprintf(`{"revision": "%d"}`, n), "p.rego": "package legation\n" + rules, "data.json": `{"a": {"n": 1}}`, "b/c/data.json": `{"x": [1.50, "y"]}`}
}

func TestABundleOfOPAItselfIsRead(t *testing.T) {
	for _, tt := range []struct {
		name, algorithm string
		key             func() (crypto.Signer, error)
	}{
		{"RS256", "RS256", func() (crypto.Signer, error) { return rsa.GenerateKey(rand.Reader, 2048) }},
		{"ES256", "ES256", func() (crypto.Signer, error) { return ecdsa.GenerateKey(elliptic.P256(), rand.Reader) }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			private, err := tt.key()
			if err != nil {
				t.Fatal(err)
			}
			der, err := x509.MarshalPKCS8PrivateKey(private)
			if err != nil {
				t.Fatal(err)
			}
			m := ast.MustParseModule("package legation\nallow if data.b.c.x[0] == 1.5")
			b := bundle.Bundle{Manifest: bundle.Manifest{Revision: "17"}, Data: map[string]any{"b": map[string]any{"c": map[string]any{"x": []any{json.Number("1.5"), "y"}}}},
				Modules: []bundle.ModuleFile{{URL: "/p/p.rego", Path: "/p/p.rego", Parsed: m, Raw: []byte("package legation\nallow if data.b.c.x[0] == 1.5")}}}
			b.Manifest.SetRegoVersion(ast.RegoV1)
			sign := bundle.NewSigningConfig(string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})), tt.algorithm, "")
			if err := b.GenerateSignature(sign, "main", false); err != nil {
				t.Fatal(err)
			}
			var raw bytes.Buffer
			if err := bundle.NewWriter(&raw).DisableFormat(true).Write(b); err != nil {
				t.Fatal(err)
			}
			got, err := policy.ReadBundle(raw.Bytes(), []policy.Key{{ID: "main", Algorithm: tt.algorithm, Public: private.Public()}}, "")
			if err != nil {
				t.Fatal(err)
			}
			got.Name = "b"
			e := engine(t, policy.Config{}, got.Policy)
			in := ask("a", "b", "predict", "llm", "m")
			if d := e.Decide(t.Context(), &in); !d.Allowed || got.Revision != 17 || got.KeyID != "main" {
				t.Errorf("%+v %+v", got, d)
			}
		})
	}
}

func TestABundleOfOursIsReadByOPA(t *testing.T) {
	s := newSigner(t)
	raw := pack(t, s.sign(t, revision(1, "allow := true")))
	if _, err := policy.ReadBundle(raw, []policy.Key{s.public()}, ""); err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKIXPublicKey(s.key.Public())
	if err != nil {
		t.Fatal(err)
	}
	keys := map[string]*bundle.KeyConfig{"main": {Key: string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der})), Algorithm: "ES256"}}
	if _, err := bundle.NewReader(bytes.NewReader(raw)).WithBundleVerificationConfig(bundle.NewVerificationConfig(keys, "", "", nil)).Read(); err != nil {
		t.Error(err)
	}
}

func TestA58OnlySignedBundlesAreRead(t *testing.T) {
	s, stranger := newSigner(t), newSigner(t)
	good := s.sign(t, revision(3, "allow := true"))
	keys := []policy.Key{s.public()}
	read := func(raw []byte) error { _, err := policy.ReadBundle(raw, keys, ""); return err }
	if err := read(pack(t, good)); err != nil {
		t.Fatal(err)
	}
	if err := read(pack(t, good.with("data.json", "{ \"a\" : {\"n\":1} }"))); err != nil {
		t.Errorf("OPA signs JSON values, not their spelling: %v", err)
	}
	unsigned := good.without(".signatures.json")
	signedBy := func(payload any) files {
		return unsigned.with(".signatures.json", fmt.Sprintf(`{"signatures":[%q]}`, s.token(t, payload)))
	}
	tokens := func(list ...string) files {
		raw, _ := json.Marshal(map[string]any{"signatures": list})
		return unsigned.with(".signatures.json", string(raw))
	}
	header := func(h string) string { return strings.TrimRight(b64(h), "=") }
	payload := func() string {
		return strings.Split(s.token(t, map[string]any{"files": listed(t, unsigned, "SHA-256")}), ".")[1]
	}
	hmac := func() string {
		j, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.HS256, Key: []byte("main-main-main-main-main-main-main")}, (&jose.SignerOptions{}).WithHeader("kid", "main"))
		if err != nil {
			t.Fatal(err)
		}
		jws, err := j.Sign([]byte(`{"files":[]}`))
		if err != nil {
			t.Fatal(err)
		}
		out, _ := jws.CompactSerialize()
		return out
	}
	ed := func() files {
		_, key, err := ed25519.GenerateKey(rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		return (&signer{key, "main", jose.EdDSA}).sign(t, unsigned)
	}
	for _, tt := range []struct {
		name string
		f    files
		want string
	}{
		{"no signature", unsigned, "not signed"},
		{"an empty list", tokens(), "0 signatures"},
		{"two signatures", tokens(s.token(t, map[string]any{}), s.token(t, map[string]any{})), "2 signatures"},
		{"another plugin", good.with(".signatures.json", strings.Replace(good[".signatures.json"], "{", `{"plugin":"other",`, 1)), "default signer"},
		{"another key of the same name", stranger.sign(t, unsigned), "does not hold"},
		{"a key that is not given", (&signer{s.key, "other", jose.ES256}).sign(t, unsigned), "not among those given"},
		{"algorithm none", tokens(header(`{"alg":"none","kid":"main"}`) + "." + payload() + "."), "cannot be read"},
		{"a shared secret", tokens(hmac()), "cannot be read"},
		{"another algorithm", ed(), "cannot be read"},
		{"no token", tokens("x.y.z"), "cannot be read"},
		{"a changed module", good.with("p.rego", "package legation\nallow := false"), "not what was signed"},
		{"a changed document", good.with("data.json", `{"a": {"n": 2}}`), "not what was signed"},
		{"a changed manifest", good.with(".manifest", `{"revision": "4"}`), "not what was signed"},
		{"a field of the manifest twice", s.sign(t, unsigned.with(".manifest", `{"revision": "3", "file_rego_versions": {}}`)).
			with(".manifest", `{"revision": "3", "file_rego_versions": {"p.rego": 9}, "file_rego_versions": {}}`), ""},
		{"a further module", good.with("q.rego", "package legation\nallow := true"), "q.rego is not signed"},
		{"a missing module", good.without("p.rego"), "is missing"},
		{"a missing document", good.without("data.json"), "is missing"},
		{"another scope", signedBy(map[string]any{"scope": "other", "files": listed(t, unsigned, "SHA-256")}), "scope"},
		{"a weak hash", signedBy(map[string]any{"files": listed(t, unsigned, "MD5")}), "MD5"},
		{"SHA-1", signedBy(map[string]any{"files": listed(t, unsigned, "SHA-1")}), "SHA-1"},
		{"a file listed twice", signedBy(map[string]any{"files": append(listed(t, unsigned, "SHA-256"), listed(t, unsigned, "SHA-256")...)}), "twice"},
		{"no manifest", s.sign(t, unsigned.without(".manifest")), "no revision"},
		{"a revision that is no number", s.sign(t, unsigned.with(".manifest", `{"revision": "abc"}`)), "a number that grows"},
		{"a revision of zero", s.sign(t, unsigned.with(".manifest", `{"revision": "0"}`)), "a number that grows"},
		{"a revision with a leading zero", s.sign(t, unsigned.with(".manifest", `{"revision": "01"}`)), "a number that grows"},
		{"wasm", s.sign(t, unsigned.with(".manifest", `{"revision": "1", "wasm": [{"module": "x"}]}`)), "wasm"},
		{"a manifest of a later time", s.sign(t, unsigned.with(".manifest", `{"revision": "1", "surprise": 1}`)), "surprise"},
		{"a Rego version of a later time", s.sign(t, unsigned.with(".manifest", `{"revision": "1", "rego_version": 3}`)), "Rego version 3"},
		{"two documents that differ", s.sign(t, unsigned.with("b/data.json", `{"c": 1}`).with("b/c/data.json", `{"x": 1}`)), "has a value already"},
		{"a document that is no object", s.sign(t, unsigned.with("data.json", `[]`)), "not a JSON object"},
		{"a document that is no JSON", unsigned.with("data.json", `{`).with(".signatures.json", good[".signatures.json"]), "not JSON"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			err := read(pack(t, tt.f))
			if tt.want == "" { // read as it was signed
				if err != nil {
					t.Error(err)
				}
				return
			}
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("%v; want %q", err, tt.want)
			}
		})
	}
	for name, keys := range map[string][]policy.Key{
		"no keys":               nil,
		"a key without a name":  {{Algorithm: "ES256", Public: s.key.Public()}},
		"an algorithm of none":  {{ID: "main", Algorithm: "none", Public: s.key.Public()}},
		"a shared secret":       {{ID: "main", Algorithm: "HS256", Public: []byte("secret")}},
		"the wrong algorithm":   {{ID: "main", Algorithm: "ES384", Public: s.key.Public()}},
		"the right one, as RSA": {{ID: "main", Algorithm: "RS256", Public: s.key.Public()}},
	} {
		if _, err := policy.ReadBundle(pack(t, good), keys, ""); err == nil {
			t.Errorf("%s verified a bundle", name)
		}
	}
	for _, tt := range []struct {
		name, want string
		raw        []byte
	}{
		{"no gzip", "gzip", []byte("x")},
		{"no tar", "tar", gz(t, []byte(strings.Repeat("x", 2000)))},
		{"a symbolic link", "no plain file", pack(t, good, &tar.Header{Name: "l.rego", Typeflag: tar.TypeSymlink, Linkname: "/etc/passwd"})},
		{"a file twice", "twice", pack(t, good, &tar.Header{Name: "p.rego", Typeflag: tar.TypeReg, Size: 1})},
		{"a way up", "no plain name", pack(t, good, &tar.Header{Name: "../p.rego", Typeflag: tar.TypeReg, Size: 1})},
		{"a way around", "no plain name", pack(t, good, &tar.Header{Name: "a//p.rego", Typeflag: tar.TypeReg, Size: 1})},
		{"wasm", "a bundle holds", pack(t, good, &tar.Header{Name: "policy.wasm", Typeflag: tar.TypeReg, Size: 1})},
		{"a delta", "a bundle holds", pack(t, good, &tar.Header{Name: "patch.json", Typeflag: tar.TypeReg, Size: 1})},
		{"YAML", "a bundle holds", pack(t, good, &tar.Header{Name: "data.yaml", Typeflag: tar.TypeReg, Size: 1})},
		{"a second archive behind the first", "follows", append(pack(t, good), pack(t, files{"p.rego": "package legation\nallow := true"})...)},
		{"a bomb", "unpacks to more", pack(t, files{}, &tar.Header{Name: "p.rego", Typeflag: tar.TypeReg, Size: 32 << 20})},
		{"too many bytes", "at most", make([]byte, policy.MaxBundleBytes+1)},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if err := read(tt.raw); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("%v; want %q", err, tt.want)
			}
		})
	}
}

func TestRegoVersionsOfABundleAreObeyed(t *testing.T) {
	s := newSigner(t)
	for _, tt := range []struct{ name, manifest, rules, want string }{
		{"v0 by declaration", `{"revision": "1", "rego_version": 0}`, "allow { true }", ""},
		{"v1 without one", `{"revision": "1"}`, "allow { true }", "p.rego:2"},
		{"v1 by declaration", `{"revision": "1", "rego_version": 1}`, "allow if true", ""},
		{"v0 for one file", `{"revision": "1", "rego_version": 1, "file_rego_versions": {"/p.rego": 0}}`, "allow { true }", ""},
		{"v0 for a pattern", `{"revision": "1", "file_rego_versions": {"/*.rego": 0}}`, "allow { true }", ""},
		{"v0 for another", `{"revision": "1", "file_rego_versions": {"/q.rego": 0}}`, "allow { true }", "p.rego:2"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			b, err := policy.ReadBundle(pack(t, s.sign(t, files{".manifest": tt.manifest, "p.rego": "package legation\n" + tt.rules})), []policy.Key{s.public()}, "")
			if err != nil {
				t.Fatal(err)
			}
			_, err = policy.Compile(t.Context(), b.Policy)
			if tt.want == "" && err != nil || tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)) {
				t.Errorf("%v; want %q", err, tt.want)
			}
		})
	}
}

// A58: versions go forward only, also across restarts.
func TestA58ABundleIsNotRolledBack(t *testing.T) {
	s := newSigner(t)
	dir := t.TempDir()
	f := policy.BundleFile{Path: filepath.Join(dir, "bundle.tar.gz"), Keys: []policy.Key{s.public()}, State: filepath.Join(dir, "highest")}
	e := empty()
	load := func(e *policy.Engine, n int, rules string) error {
		if err := os.WriteFile(f.Path, pack(t, s.sign(t, revision(n, rules))), 0o600); err != nil {
			t.Fatal(err)
		}
		return f.Load(t.Context(), e)
	}
	in := ask("a", "b", "predict", "llm", "m")
	allowed := func(e *policy.Engine) bool { return e.Decide(t.Context(), &in).Allowed }
	if err := load(e, 2, "allow := false"); err != nil || allowed(e) {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name, want, rules string
		n                 int
	}{
		{"a lower revision", "older than 2", "allow := true", 1},
		{"the same revision with other content", "other content", "allow := true", 2},
		{"a higher one that does not compile", "p.rego:2", "allow := if", 3},
	} {
		if err := load(e, tt.n, tt.rules); err == nil || !strings.Contains(err.Error(), tt.want) || allowed(e) {
			t.Errorf("%s: %v; want %q", tt.name, err, tt.want)
		}
	}
	if err := load(e, 5, "allow := true"); err != nil || !allowed(e) {
		t.Errorf("a higher revision: %v", err)
	}
	five, err := os.ReadFile(f.Path)
	if err != nil {
		t.Fatal(err)
	}
	// A restart: a new engine, the same state.
	again := empty()
	if err := load(again, 4, "allow := true"); err == nil || allowed(again) {
		t.Errorf("a restart was rolled back: %v", err)
	}
	write(t, f.Path, string(five))
	if err := f.Load(t.Context(), again); err != nil || !allowed(again) {
		t.Errorf("the same bundle after a restart: %v", err)
	}
	// A state that cannot be read, or kept, is no reason to accept anything.
	if err := os.WriteFile(f.State, []byte("{}"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := load(empty(), 9, "allow := true"); err == nil || !strings.Contains(err.Error(), "not known") {
		t.Errorf("a state without a revision: %v", err)
	}
	f.State = filepath.Join(dir, "missing", "highest")
	fresh := empty()
	if err := load(fresh, 9, "allow := true"); err == nil || allowed(fresh) {
		t.Errorf("a revision that could not be kept is in force: %v", err)
	}
	f.State = ""
	if err := f.Run(t.Context(), fresh); err == nil {
		t.Error("it runs without a state")
	}
}

// Two that load at the same time do not roll each other back.
func TestA58ABundleIsNotRolledBackByAnotherThatIsLoadedMeanwhile(t *testing.T) {
	s := newSigner(t)
	in := ask("a", "b", "predict", "llm", "m")
	for round := range 20 {
		dir := t.TempDir()
		state := filepath.Join(dir, "highest")
		e := empty()
		var all sync.WaitGroup
		for n, rules := range map[int]string{1: "allow := true", 2: "allow := false"} {
			f := policy.BundleFile{Path: filepath.Join(dir, fmt.Sprint(n)), Keys: []policy.Key{s.public()}, State: state, Name: "p"}
			write(t, f.Path, string(pack(t, s.sign(t, revision(n, rules)))))
			all.Go(func() { f.Load(t.Context(), e) })
		}
		all.Wait()
		if d := e.Decide(t.Context(), &in); d.Allowed {
			t.Fatalf("round %d: revision 1 is in force after revision 2: %+v", round, d)
		}
	}
}

// A state file that cannot be written says nothing against the bundle, and
// what a kill left beside it is removed.
func TestABundleIsTriedAgainOnceItsRevisionCanBeKept(t *testing.T) {
	s := newSigner(t)
	dir := t.TempDir()
	in := ask("a", "b", "predict", "llm", "m")
	var logged syncBuffer
	e := policy.NewEngine(policy.Config{Logger: slog.New(slog.NewTextHandler(&logged, nil))})
	f := policy.BundleFile{Path: filepath.Join(dir, "b.tar.gz"), Keys: []policy.Key{s.public()}, State: filepath.Join(dir, "later", "highest"), Poll: 20 * time.Millisecond}
	write(t, f.Path, string(pack(t, s.sign(t, revision(1, "allow := true")))))
	running(t, func(ctx context.Context) error { return f.Run(ctx, e) })
	deadline := time.Now().Add(time.Minute)
	for !strings.Contains(logged.String(), "keep the highest revision") {
		if time.Now().After(deadline) {
			t.Fatalf("a state that cannot be written is not told: %s", logged.String())
		}
		time.Sleep(time.Millisecond)
	}
	if d := e.Decide(t.Context(), &in); d.Cause != policy.CauseNoPolicy {
		t.Errorf("in force although its revision is not kept: %+v", d)
	}
	if err := os.Mkdir(filepath.Dir(f.State), 0o700); err != nil {
		t.Fatal(err)
	}
	eventually(t, e, in, true)
}

func TestWhatAKillLeftBesideTheStateIsRemoved(t *testing.T) {
	s := newSigner(t)
	f := policy.BundleFile{Path: filepath.Join(t.TempDir(), "b.tar.gz"), Keys: []policy.Key{s.public()}, State: filepath.Join(t.TempDir(), "highest"), Poll: time.Hour}
	write(t, f.Path, string(pack(t, s.sign(t, revision(1, "allow := true")))))
	left := filepath.Join(filepath.Dir(f.State), ".new-"+rand.Text())
	write(t, left, "{")
	if err := os.Chtimes(left, time.Time{}, time.Now().Add(-time.Hour)); err != nil {
		t.Fatal(err)
	}
	e := empty()
	running(t, func(ctx context.Context) error { return f.Run(ctx, e) })
	eventually(t, e, ask("a", "b", "predict", "llm", "m"), true)
	if _, err := os.Stat(left); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("it is still there: %v", err)
	}
}

func gz(t testing.TB, raw []byte) []byte {
	t.Helper()
	var b bytes.Buffer
	z := gzip.NewWriter(&b)
	if _, err := z.Write(raw); err != nil {
		t.Fatal(err)
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// syncBuffer is a log that is read while it is written.
type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *syncBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *syncBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}
