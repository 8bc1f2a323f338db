package envoysds

import (
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"encoding/json"

	"github.com/legation-io/legation/test/stand"
)

func TestHandWrittenConfigurationsWorkAsTheyStand(t *testing.T) {
	r := newRig(t)
	r.Apply(r.example("identities.yaml"))
	r.backend()
	r.web()
	r.works("mutual TLS works between the two")
}

func TestEveryNameIsServedInBothProtocols(t *testing.T) {
	r := newRig(t)
	r.Apply(r.example("identities.yaml"))
	r.web()
	plain := r.example("server.yaml")
	const certificate, validation = `- name: "` + backendID + `"`, `name: "spiffe://example.org"`
	for _, text := range []string{certificate, validation, "api_type: GRPC"} {
		if strings.Count(plain, text) != 1 {
			t.Fatalf("server.yaml does not have %q once", text)
		}
	}
	for i, names := range [][2]string{
		{"default", "ROOTCA"}, {"retail-service-cert", "ALL"}, {backendID, "spiffe://example.org/validation_context"}, {"default", "spiffe://example.org"},
	} {
		for _, api := range []string{"GRPC", "DELTA_GRPC"} {
			t.Run(fmt.Sprintf("%s and %s by %s", names[0], names[1], api), func(t *testing.T) {
				text := strings.Replace(plain, certificate, `- name: "`+names[0]+`"`, 1)
				text = strings.Replace(text, validation, `name: "`+names[1]+`"`, 1)
				text = strings.Replace(text, "api_type: GRPC", "api_type: "+api, 1)
				r.t = t
				defer func(outer testing.TB) { r.t = outer }(r.t)
				p := r.start(1101, fmt.Sprintf("backend-%d-%s", i, api), strings.ReplaceAll(text, "backend-admin.sock", fmt.Sprintf("backend-%d-%s-admin.sock", i, api)))
				r.works("requests arrive")
				p.Stop()
			})
		}
	}
}

func TestAValidationContextAloneWorksToo(t *testing.T) {
	r := newRig(t)
	r.Apply(r.example("identities.yaml"))
	r.web()
	head, rest, ok := strings.Cut(r.example("server.yaml"), "            combined_validation_context:\n")
	_, tail, ok2 := strings.Cut(rest, "                sds_config: *agent\n")
	if !ok || !ok2 {
		t.Fatal("server.yaml has no combined validation context")
	}
	r.start(1101, "backend", head+"            validation_context_sds_secret_config:\n              name: ROOTCA\n              sds_config: *agent\n"+tail)
	r.works("requests arrive")
	if _, err := r.handshake(r.certificate(1101, "default")); err != nil {
		t.Errorf("a context that names nobody lets in everyone of the trust domain, and not this: %v", err)
	}
}

func TestANameThatCannotBeServedSaysWhyAndIsServedOnceAnEntryAppears(t *testing.T) {
	r := newRig(t)
	r.t = t
	backend, web := r.backend(), r.web()
	for _, asked := range []struct {
		p    *proxy
		name string
	}{{backend, backendID}, {backend, "spiffe://example.org"}, {web, "retail-web-cert"}, {web, "ROOTCA"}} {
		r.agent.Process.Logged(fmt.Sprintf("subscriber=sds/%d/", asked.p.PID), "name="+asked.name+" ", "no entry matches this process", "declare a WorkloadIdentity")
	}
	r.agent.Process.Logged(`name=`+backendID, "stays open")
	if n := r.metric("legation_sds_missing_total"); n < 4 { // two names of each Envoy
		t.Errorf("legation_sds_missing_total is %v", n)
	}
	out, err := r.agent.Legation("why", "--sds-name", backendID)
	if err != nil {
		t.Fatal(err)
	}
	contains(t, out, "no declared entry has that name", fmt.Sprintf("process %d asks for SDS name %q in vain", backend.PID, backendID))
	if out, err = r.agent.Legation("status", "--node"); err == nil {
		t.Errorf("status finds nothing wrong:\n%s", out)
	}
	contains(t, out, fmt.Sprintf("process %d asks for SDS name \"retail-web-cert\" in vain", web.PID))

	// An entry for somebody else: told which, and what this process lacks.
	wrong := strings.ReplaceAll(strings.ReplaceAll(r.example("identities.yaml"), "unix:uid:1101", "unix:uid:7"), r.binary(1101), "/not/this/one")
	r.Apply(wrong)
	stand.Until(t, "why names the entry that would serve the name", func() error {
		out, err := r.agent.Legation("why", "--sds-name", backendID, "--pid", fmt.Sprint(backend.PID))
		if err != nil {
			return err
		}
		if !strings.Contains(out, "entry retail/backend ("+backendID+") has that name, but the process lacks") {
			return fmt.Errorf("%s", out)
		}
		return nil
	})

	r.Apply(r.example("identities.yaml"))
	r.works("an entry made the names appear on the open streams")
	out, err = r.agent.Legation("why", "--sds-name", "retail-service-cert", "--pid", fmt.Sprint(backend.PID))
	if err != nil {
		t.Fatal(err)
	}
	contains(t, out, fmt.Sprintf("Process %d is served \"retail-service-cert\": the certificate of %s, by entry retail/backend", backend.PID, backendID))
	if out, err := r.agent.Legation("status", "--node"); err != nil {
		t.Errorf("something is still wrong: %v\n%s", err, out)
	}
}

func TestRotationUnderLoadFailsNoRequest(t *testing.T) {
	r := newRig(t)
	r.Apply(r.example("identities.yaml"))
	backend, web := r.backend(), r.web()
	r.works("it works")
	client := r.certificate(1102, "default")
	stop, ended := make(chan struct{}), make(chan struct{})
	var mu sync.Mutex
	var good, bad int
	var first error
	go func() {
		defer close(ended)
		for {
			select {
			case <-stop:
				return
			default:
			}
			// One over Envoy's pool, one with a handshake of its own.
			_, err := r.call()
			if err == nil {
				_, err = r.handshake(client)
			}
			mu.Lock()
			if err != nil {
				bad++
				first = err
			} else {
				good++
			}
			mu.Unlock()
		}
	}()
	text := r.example("identities.yaml")
	for _, ttl := range []string{"2h", "3h", "4h"} {
		before := [2]string{backend.serial(), web.serial()}
		r.Apply(strings.ReplaceAll(text, "  node: node-1\n", "  node: node-1\n  ttl: "+ttl+"\n"))
		stand.Until(t, "both Envoys present new certificates", func() error {
			if a, b := backend.serial(), web.serial(); a == before[0] || b == before[1] {
				return fmt.Errorf("%s %s", a, b)
			}
			return nil
		})
	}
	close(stop)
	<-ended
	if bad > 0 || good < 10 {
		t.Errorf("%d requests failed of %d, one because: %v", bad, good+bad, first)
	}
	t.Logf("%d requests over three rotations of both, none failed", good)
}

func TestARevokedIdentityIsRefusedWithinMillisecondsAndCountedAsAcknowledged(t *testing.T) {
	r := newRig(t)
	r.Apply(r.example("identities.yaml"))
	r.backend()
	r.web()
	r.works("it works")
	web, backend := r.certificate(1102, "default"), r.certificate(1101, "default")
	if _, err := r.handshake(web); err != nil {
		t.Fatal(err)
	}
	if _, err := r.handshake(backend); err == nil {
		t.Error("an identity that the file does not name was let in")
	}
	refused := make(chan time.Time, 1)
	go func() {
		for {
			if _, err := r.handshake(web); err != nil {
				refused <- time.Now()
				return
			}
		}
	}()
	begin := time.Now()
	var got struct {
		Acknowledged, Unknown               int
		Missing                             []string
		CommittedMillis, AcknowledgedMillis float64
		Enforcing, Delivered                int
	}
	if err := json.Unmarshal([]byte(r.Must("revoke", webID, "--reason", "test", "-o", "json")), &got); err != nil {
		t.Fatal(err)
	}
	at := <-refused
	t.Logf("refused %s after the command was started; committed %.1f ms, acknowledged %.1f ms", at.Sub(begin).Round(100*time.Microsecond), got.CommittedMillis, got.AcknowledgedMillis)
	if len(got.Missing) > 0 || got.Acknowledged != 2 || got.Unknown != 0 {
		t.Errorf("the two Envoys' validation contexts are not what is counted as acknowledged: %+v", got)
	}
	if d := at.Sub(begin); d > stand.Patience { // of milliseconds
		t.Errorf("refused only after %s", d)
	}
	// Lifted, the same Envoy gets a new certificate on its open stream.
	r.Must("lift", webID)
	stand.Until(t, "the lifted identity is let in with its new certificate", func() error {
		got, err := r.as(1102, sdsCall{Unix: r.agent.Socket, Names: []string{"default"}})
		if err != nil {
			return err
		}
		_ = got
		_, err = r.handshake(r.certificate(1102, "default"))
		return err
	})
	if _, err := r.handshake(web); err == nil {
		t.Error("the revoked certificate is accepted again")
	}
}

func TestEnvoysGoOnWhileTheAgentRestartsAndTheControlPlaneIsAway(t *testing.T) {
	r := newRig(t)
	r.Apply(r.example("identities.yaml"))
	backend := r.backend()
	r.web()
	r.works("it works")
	before := backend.serial()
	r.Process.Kill()
	r.agent.Process.Kill()
	r.works("without agent and control plane")
	r.agent.Process = stand.Start(t, "agent again", append([]string{r.Bin + "/legation-agent"}, r.agent.Args...)...)
	stand.Until(t, "a new caller is served from the agent's cache", func() error {
		got, err := r.as(1101, sdsCall{Unix: r.agent.Socket, Names: []string{"default", "ROOTCA"}})
		if err == nil && len(got) != 2 {
			err = fmt.Errorf("%d secrets", len(got))
		}
		return err
	})
	if after := backend.serial(); after != before {
		t.Errorf("the agent gave another certificate, %s after %s", after, before)
	}
	r.Start()
	r.works("all is back")
}

func contains(t *testing.T, text string, words ...string) {
	t.Helper()
	for _, w := range words {
		if !strings.Contains(text, w) {
			t.Errorf("it does not say %q:\n%s", w, text)
		}
	}
}

// metric sums a metric of the agent.
func (r *rig) metric(name string) float64 {
	r.t.Helper()
	resp, err := http.Get("http://" + r.agent.Metrics + "/metrics")
	if err != nil {
		r.t.Fatal(err)
	}
	defer resp.Body.Close()
	raw, err := io.ReadAll(resp.Body)
	if err != nil {
		r.t.Fatal(err)
	}
	sum := 0.0
	for line := range strings.Lines(string(raw)) {
		key, value, _ := strings.Cut(strings.TrimSpace(line), " ")
		if base, _, _ := strings.Cut(key, "{"); base == name {
			var v float64
			fmt.Sscan(value, &v)
			sum += v
		}
	}
	return sum
}
