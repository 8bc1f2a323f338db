package handshake

import (
	"os/exec"
	"strings"
	"testing"
)

func TestTheCoreLinksNoMetricsNoTracingNoGRPC(t *testing.T) {
	for pkg, forbidden := range map[string][]string{
		".":               {"prometheus", "opentelemetry", "google.golang.org/grpc"},
		"./promhandshake": {"opentelemetry", "google.golang.org/grpc"},
		"./otelhandshake": {"prometheus", "google.golang.org/grpc", "opentelemetry.io/otel/sdk"},
		"../drain":        {"prometheus", "opentelemetry", "google.golang.org/grpc", "legation/sdk/handshake"},
		"../certfile":     {"opentelemetry", "google.golang.org/grpc"},
	} {
		out, err := exec.Command("go", "list", "-deps", pkg).Output()
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(out)) {
			for _, f := range forbidden {
				if strings.Contains(line, f) {
					t.Errorf("%s links %s", pkg, strings.TrimSpace(line))
				}
			}
		}
	}
}
