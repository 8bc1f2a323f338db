package session

import (
	localv1 "github.com/legation-io/legation/api/local/v1"
	"github.com/prometheus/client_golang/prometheus"
)

// Bounds of what a session's parent may name: it is any local process.
const (
	maxRules    = 32
	maxRuleName = 64
)

// captureCounted takes what met the rules of this session's capture.
func (sn *session) captureCounted(m *localv1.CaptureCounters) {
	packets := make(map[string]uint64, min(len(m.Packets), maxRules))
	for name, n := range m.Packets {
		if len(packets) < maxRules && ruleName(name) {
			packets[name] = n
		}
	}
	problem := ""
	if m.Error != "" {
		problem = "the capture of its traffic cannot be counted on: " + m.Error[:min(len(m.Error), 512)] + "; restart the program"
	}
	sn.mu.Lock()
	known := sn.captureProblem
	sn.captureProblem = problem
	if m.Error == "" {
		sn.captured = packets
	}
	sn.mu.Unlock()
	if problem != "" && problem != known {
		sn.warn(problem)
	}
}

func ruleName(name string) bool {
	for _, c := range []byte(name) {
		if (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '_' {
			return false
		}
	}
	return name != "" && len(name) <= maxRuleName
}

var capturedDesc = prometheus.NewDesc("legation_capture_packets_total",
	"Packets that met a rule of a session's capture: for captured connections the first of each, for what is refused every one.", []string{"session", "rule"}, nil)

// collectCaptured tells one session's counters.
func (sn *session) collectCaptured(c chan<- prometheus.Metric) {
	sn.mu.Lock()
	packets := sn.captured // replaced, never changed
	sn.mu.Unlock()
	for name, n := range packets {
		c <- prometheus.MustNewConstMetric(capturedDesc, prometheus.CounterValue, float64(n), sn.id, name)
	}
}
