package session

import (
	"context"
	"fmt"
	"math/rand/v2"
	"time"

	nodev1 "github.com/legation-io/legation/api/node/v1"
	"github.com/legation-io/legation/internal/agent/envoy"
	"github.com/prometheus/client_golang/prometheus"
)

// How often an Envoy is asked what it presents: in between, soon after it
// acknowledged a new certificate, and to confirm what looks wrong (a listener
// that drains still holds the old one for a moment).
const (
	servedEvery   = 30 * time.Second
	servedSoon    = 250 * time.Millisecond
	servedConfirm = 5 * time.Second
	servedTimeout = 5 * time.Second
)

// watchServed compares what this session's Envoy presents with what it was
// given: an acknowledgement is only its word.
func (sn *session) watchServed(ctx context.Context) error {
	timer := time.NewTimer(servedSoon)
	defer timer.Stop()
	doubted := false
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-sn.look:
			timer.Reset(servedSoon)
			continue
		case <-timer.C:
		}
		wait := servedEvery + rand.N(servedEvery/4)
		if doubted = !sn.checkServed(ctx, doubted); doubted {
			wait = servedConfirm
		}
		timer.Reset(wait)
	}
}

// lookSoon asks for a check of what is presented.
func (sn *session) lookSoon() {
	select {
	case sn.look <- struct{}{}:
	default:
	}
}

// checkServed looks once; false is to be looked at again soon. What differs
// is believed when it was doubted before.
func (sn *session) checkServed(ctx context.Context, doubted bool) bool {
	sn.mu.Lock()
	issued, pid := sn.presents, sn.envoyPID
	sn.mu.Unlock()
	if issued == nil || pid == 0 {
		return true
	}
	ctx, cancel := context.WithTimeout(ctx, servedTimeout)
	defer cancel()
	list, err := envoy.NewAdmin(sn.adminSocket()).ServedCertificates(ctx)
	want := envoy.Serial(issued.Serial)
	seen := &nodev1.ServedCertificate{Subscriber: Subscriber(sn.id), SpiffeId: sn.spiffeID(), IssuedSerial: want}
	problem := ""
	switch {
	case err != nil:
		problem = "what its Envoy presents cannot be seen: " + err.Error()
	case len(list) == 0:
		return true // no listener and no cluster uses it
	default:
		for _, c := range list { // by expiry: the first that is not what was issued, else that
			seen.Serial, seen.NotAfterUnix = c.Serial, c.NotAfter.Unix()
			if c.Serial != want {
				problem = fmt.Sprintf("its Envoy presents certificate %.16s (ends %s) although it acknowledged %.16s: the program's peers see the old one; restart the program, or end its Envoy (process %d), which is started again",
					c.Serial, c.NotAfter.UTC().Format(time.RFC3339), want, pid)
				break
			}
			if now := sn.server.p.Clock.Now(); problem == "" && now.After(c.NotAfter) {
				problem = fmt.Sprintf("its Envoy presents a certificate that ended %s ago, because it could not be renewed; see: legation status --node", now.Sub(c.NotAfter).Round(time.Second))
			}
		}
	}
	if problem != "" && !doubted {
		return false
	}
	sn.mu.Lock()
	if sn.presents != issued { // renewed meanwhile: look again
		sn.mu.Unlock()
		return false
	}
	before, beforeProblem := sn.seen, sn.servedProblem
	sn.servedProblem = problem
	if err == nil {
		sn.seen = seen
	}
	sn.mu.Unlock()
	if problem != "" && problem != beforeProblem {
		sn.warn(problem)
	}
	if err == nil && (before == nil || before.Serial != seen.Serial || before.IssuedSerial != seen.IssuedSerial) {
		sn.server.p.Link.Report(&nodev1.ReportRequest{Served: []*nodev1.ServedCertificate{seen}})
	}
	return problem == ""
}

// Problems lists what is wrong with what Envoys present and with captures.
func (s *Server) Problems() []string {
	var list []string
	for _, sn := range s.all() {
		sn.mu.Lock()
		for _, problem := range []string{sn.servedProblem, sn.captureProblem} {
			if problem != "" {
				list = append(list, fmt.Sprintf("session %s (%s): %s", sn.id, sn.spiffeID(), problem))
			}
		}
		sn.mu.Unlock()
	}
	return list
}

// collector tells at each scrape how long what is presented will last, and
// what met the captures' rules.
type collector struct{ s *Server }

var servedDesc = prometheus.NewDesc("legation_served_certificate_expiry_seconds",
	"Seconds until the certificate that a session's Envoy really presents ends; negative: it has ended.", []string{"spiffe_id", "session"}, nil)

func (e collector) Describe(c chan<- *prometheus.Desc) {
	c <- servedDesc
	c <- capturedDesc
}

func (e collector) Collect(c chan<- prometheus.Metric) {
	now := e.s.p.Clock.Now()
	for _, sn := range e.s.all() {
		sn.mu.Lock()
		seen := sn.seen
		sn.mu.Unlock()
		sn.collectCaptured(c)
		if seen != nil {
			c <- prometheus.MustNewConstMetric(servedDesc, prometheus.GaugeValue, time.Unix(seen.NotAfterUnix, 0).Sub(now).Seconds(), sn.spiffeID(), sn.id)
		}
	}
}
