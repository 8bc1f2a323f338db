package linktest

import (
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/legation-io/legation/sdk"

// groups are what weighs something, by name, with prefixes of import paths.
var groups = map[string][]string{
	"grpc":       {"google.golang.org/grpc"},
	"protobuf":   {"google.golang.org/protobuf"},
	"opa":        {"github.com/open-policy-agent"},
	"certmagic":  {"github.com/caddyserver", "github.com/mholt", "github.com/libdns", "github.com/miekg", "go.uber.org/zap"},
	"prometheus": {"github.com/prometheus"},
	"otel":       {"go.opentelemetry.io"},
	"jose":       {"github.com/go-jose"},
	"envoy":      {"github.com/envoyproxy", "github.com/cncf"},
	"fsnotify":   {"github.com/fsnotify"},
	"yaml":       {"go.yaml.in", "gopkg.in/yaml"},
	"http":       {"net/http"},
	"testing":    {"testing"},
}

// metrics is what package prometheus brings along.
var metrics = []string{"prometheus", "protobuf", "http"}

var grpc = []string{"grpc", "protobuf", "http"}

// may is what each package may link, itself and below. A package without a row
// may link none of the groups: this table is where that is changed, with a
// reason.
var may = map[string][]string{
	// What every service with mTLS has. No metrics library: hooks tell.
	"chaincheck": nil,
	"identity":   nil,
	"handshake":  nil,
	"secretmem":  nil,
	"aes256gcm":  nil,
	"light":      nil, // small machines: no gRPC, no protobuf, no net/http
	"mtls":       {"http"},
	"certfile":   union(metrics, []string{"fsnotify"}),
	"drain":      {"http"},
	"egress":     {"http"},

	// Adapters, so that what they adapt to is linked by choice.
	"chaincheck/ocsphttp":     {"http"},
	"handshake/promhandshake": metrics,
	"handshake/otelhandshake": {"otel"},

	"api":         grpc,
	"workloadapi": union(grpc, metrics, []string{"jose"}),
	"grpccreds":   grpc,

	"jwtcheck":                    {"jose"},
	"propagation":                 union(metrics, []string{"jose"}),
	"propagation/grpcpropagation": union(grpc, metrics, []string{"jose"}),
	"propagation/tokens":          union(grpc, metrics, []string{"jose"}),

	"policy":            union(metrics, []string{"opa", "jose", "fsnotify", "yaml"}),
	"policy/declared":   union(grpc, metrics, []string{"opa", "jose", "fsnotify", "yaml"}),
	"policy/grpcpolicy": union(grpc, metrics, []string{"opa", "jose", "fsnotify", "yaml"}),

	"renewal":              union(metrics, []string{"yaml"}),
	"renewal/folder":       union(metrics, []string{"yaml", "fsnotify"}),
	"acmecert":             union(metrics, []string{"certmagic"}),
	"acmecert/acmesds":     union(grpc, metrics, []string{"envoy"}),
	"acmecert/objectstore": union(grpc, metrics, []string{"certmagic", "jose"}),

	"internal/metric": metrics,

	"examples/hello-mtls": {"http"},
}

// never is what a package does not link although its groups would let it.
var never = map[string][]string{
	"handshake/otelhandshake": {"go.opentelemetry.io/otel/sdk"}, // which SDK exports is the program's choice
	"drain":                   {module + "/handshake"},
}

// forTests are packages that only tests import.
var forTests = []string{"internal/pkitest", "internal/fakeapi", "internal/linktest", "renewal/storetest"}

func union(lists ...[]string) []string { return slices.Concat(lists...) }

// allowed is the row of a package, or of the nearest folder above it that has
// one.
func allowed(pkg string) []string {
	for path := pkg; path != ""; path = path[:max(0, strings.LastIndex(path, "/"))] {
		if row, ok := may[path]; ok {
			return row
		}
	}
	return nil
}

func list(t *testing.T, args ...string) []string {
	t.Helper()
	cmd := exec.Command("go", append([]string{"list"}, args...)...)
	cmd.Dir = "../.."
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list %v: %v", args, err)
	}
	return strings.Split(strings.TrimSpace(string(out)), "\n")
}

func TestWhatEachPackageLinks(t *testing.T) {
	everySource(t)
	deps := map[string][]string{}
	for _, line := range list(t, "-f", `{{.ImportPath}} {{join .Deps " "}}`, "./...") {
		fields := strings.Fields(line)
		deps[strings.TrimPrefix(fields[0], module+"/")] = fields[1:]
	}
	for pkg, linked := range deps {
		if isForTests(pkg) {
			continue
		}
		row := allowed(pkg)
		for group, prefixes := range groups {
			if slices.Contains(row, group) {
				continue
			}
			for _, dep := range linked {
				if slices.ContainsFunc(prefixes, func(p string) bool { return dep == p || strings.HasPrefix(dep, p+"/") }) {
					t.Errorf("%s links %s, by %s; see why with: go list -deps, or give it a row in this table with a reason", pkg, group, dep)
					break
				}
			}
		}
		for _, dep := range linked {
			if slices.ContainsFunc(never[pkg], func(p string) bool { return dep == p || strings.HasPrefix(dep, p+"/") }) {
				t.Errorf("%s links %s", pkg, dep)
			}
			if strings.HasPrefix(dep, "github.com/legation-io/") && !strings.HasPrefix(dep, module+"/") {
				t.Errorf("%s imports %s; the SDK imports nothing of the root module", pkg, dep)
			}
		}
	}
	// A row that allows what is not linked hides what will be.
	for pkg, row := range may {
		for _, group := range row {
			if linked, ok := deps[pkg]; ok && !slices.ContainsFunc(linked, func(dep string) bool {
				return slices.ContainsFunc(groups[group], func(p string) bool { return dep == p || strings.HasPrefix(dep, p+"/") })
			}) {
				t.Errorf("%s may link %s and does not: take it out of its row", pkg, group)
			}
		}
	}
}

// everySource looks at each file of the SDK, so that "go test" does not answer
// from its cache when one has changed: it does not see what "go list" reads.
func everySource(t *testing.T) {
	err := filepath.WalkDir("../..", func(path string, _ fs.DirEntry, err error) error {
		if err == nil && strings.HasSuffix(path, ".go") {
			_, err = os.Stat(path)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

func isForTests(pkg string) bool {
	return slices.Contains(forTests, pkg) || strings.Contains(pkg, "/internal/") && !strings.HasPrefix(pkg, "internal/")
}

// TestTheSmallPartsBuildElsewhere: what a service on another machine needs.
func TestTheSmallPartsBuildElsewhere(t *testing.T) {
	everySource(t)
	for _, target := range []string{"linux/arm64", "linux/arm", "darwin/arm64"} {
		t.Run(target, func(t *testing.T) {
			system, arch, _ := strings.Cut(target, "/")
			cmd := exec.Command("go", "build", "./light", "./mtls", "./secretmem", "./workloadapi")
			cmd.Dir = "../.."
			cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS="+system, "GOARCH="+arch, "GOARM=7")
			if talk, err := cmd.CombinedOutput(); err != nil {
				t.Errorf("%v\n%s", err, talk)
			}
		})
	}
}
