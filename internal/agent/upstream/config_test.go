package upstream

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"

	nodev1 "github.com/legation-io/legation/api/node/v1"
	"github.com/legation-io/legation/internal/distribute"
	"github.com/legation-io/legation/internal/fault"
	"github.com/legation-io/legation/internal/server/node/nodetest"
)

// proxies is the agent's side: what every subject has now, as an Engine
// would hold it.
type proxies struct {
	mu       sync.Mutex
	has      map[string]map[string]string
	refusals map[string]string
	updates  []string
	fail     error
}

func (p *proxies) onConfig(id string, u ConfigUpdate) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.fail != nil && len(u.Changes) > 0 {
		return p.fail
	}
	if p.has == nil {
		p.has, p.refusals = map[string]map[string]string{}, map[string]string{}
	}
	if p.has[id] == nil {
		p.has[id] = map[string]string{}
	}
	var text []string
	for _, c := range u.Changes {
		if c.Scope != SessionScope(id) {
			return fmt.Errorf("scope %s", c.Scope)
		}
		if c.Resource == nil {
			delete(p.has[id], c.Name)
			text = append(text, "-"+c.Name)
			continue
		}
		p.has[id][c.Name] = string(c.Resource.Body)
		text = append(text, c.Name+"="+string(c.Resource.Body))
	}
	slices.Sort(text)
	p.refusals[id] = u.Refusal.GetMessage()
	p.updates = append(p.updates, id+": "+strings.Join(text, " "))
	return nil
}

func (p *proxies) show(id string) string {
	p.mu.Lock()
	defer p.mu.Unlock()
	var out []string
	for name, body := range p.has[id] {
		out = append(out, name+"="+body)
	}
	slices.Sort(out)
	if p.refusals[id] != "" {
		out = append(out, "refused: "+p.refusals[id])
	}
	return strings.Join(out, " ")
}

func (p *proxies) count() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.updates)
}

func compiles(m map[string]string) func(string, *nodev1.Subject) ([]*distribute.Resource, error) {
	return func(string, *nodev1.Subject) ([]*distribute.Resource, error) {
		var out []*distribute.Resource
		for name, body := range m {
			out = append(out, distribute.NewResource("type.example/T", name, []byte(body)))
		}
		return out, nil
	}
}

func webSubject(id string) *nodev1.Subject {
	return &nodev1.Subject{Id: id, Entry: "default/web", SpiffeId: "spiffe://example.org/ns/default/sa/web", Mode: nodev1.Mode_MODE_EXPLICIT}
}

func newProxyAgent(t *testing.T, p *nodetest.Plane) (*agent, *proxies) {
	t.Helper()
	p.SetEntry("web-1", webEntry())
	a, proxies := newAgent(t, p), &proxies{}
	a.params.OnConfig = proxies.onConfig
	a.start()
	a.until("synced", synced)
	return a, proxies
}

func has(t *testing.T, p *proxies, id, want string) {
	t.Helper()
	nodetest.Eventually(t, id+" has "+want+", had "+p.show(id), func() bool { return p.show(id) == want })
}

func TestSubjectsFollowTheControlPlane(t *testing.T) {
	p := nodetest.New(t)
	p.SetCompile(compiles(map[string]string{"a": "A", "b": "B"}))
	a, proxies := newProxyAgent(t, p)
	a.WatchSubject(webSubject("s1"))
	has(t, proxies, "s1", "a=A b=B")
	a.WatchSubject(webSubject("s2"))
	has(t, proxies, "s2", "a=A b=B")
	p.SetCompile(compiles(map[string]string{"a": "A2", "c": "A"}))
	has(t, proxies, "s1", "a=A2 c=A")
	has(t, proxies, "s2", "a=A2 c=A")
	a.UnwatchSubject("s1")
	p.SetCompile(compiles(map[string]string{"b": "B"}))
	has(t, proxies, "s2", "b=B")
	if got := proxies.show("s1"); got != "a=A2 c=A" {
		t.Fatalf("s1 changed after it was unwatched: %s", got)
	}
	a.WatchSubject(webSubject("s1"))
	has(t, proxies, "s1", "a=A2 b=B c=A") // an Engine's scope would have been dropped with the session
	p.SetCompile(func(string, *nodev1.Subject) ([]*distribute.Resource, error) {
		return nil, fault.New(fault.Invalid, "no such service")
	})
	has(t, proxies, "s2", "b=B refused: no such service")
	p.SetCompile(compiles(map[string]string{"b": "B"}))
	has(t, proxies, "s2", "b=B")
}

func TestUnwatchAndWatchAgainAtOnceStartsAnew(t *testing.T) {
	p := nodetest.New(t)
	p.SetCompile(compiles(map[string]string{"a": "A", "b": "B"}))
	a, proxies := newProxyAgent(t, p)
	for range 20 {
		a.WatchSubject(webSubject("s1"))
		has(t, proxies, "s1", "a=A b=B")
		a.UnwatchSubject("s1")
		proxies.mu.Lock()
		delete(proxies.has, "s1")
		proxies.mu.Unlock()
	}
}

func TestRefusedConfigKeepsTheLastGoodAndIsTold(t *testing.T) {
	p := nodetest.New(t)
	p.SetCompile(compiles(map[string]string{"a": "A"}))
	a, proxies := newProxyAgent(t, p)
	a.WatchSubject(webSubject("s1"))
	has(t, proxies, "s1", "a=A")
	proxies.mu.Lock()
	proxies.fail = errors.New("the listener is malformed")
	proxies.mu.Unlock()
	p.SetCompile(compiles(map[string]string{"a": "bad"}))
	nodetest.Eventually(t, "the ledger has the refusal", func() bool {
		lines := p.Engine.Statuses(distribute.Filter{Subscriber: "node/web-1/s1", Behind: true})
		return len(lines) == 1 && strings.Contains(lines[0].Error, "the listener is malformed")
	})
	if got := proxies.show("s1"); got != "a=A" {
		t.Fatal(got)
	}
	proxies.mu.Lock()
	proxies.fail = nil
	proxies.mu.Unlock()
	// What was refused counts as not held: a new link sends it again.
	p.Stop()
	a.until("down", func(v *View) bool { return !v.Connected })
	p.Start()
	has(t, proxies, "s1", "a=bad")
}

func TestConfigResumesWithDifferencesOnly(t *testing.T) {
	p := nodetest.New(t)
	p.SetCompile(compiles(map[string]string{"a": "A", "b": "B", "c": "C"}))
	a, proxies := newProxyAgent(t, p)
	a.WatchSubject(webSubject("s1"))
	has(t, proxies, "s1", "a=A b=B c=C")
	before := proxies.count()
	p.Stop()
	a.until("down", func(v *View) bool { return !v.Connected })
	p.SetCompile(compiles(map[string]string{"a": "A", "b": "B2"}))
	p.Start()
	has(t, proxies, "s1", "a=A b=B2")
	proxies.mu.Lock()
	defer proxies.mu.Unlock()
	if got := proxies.updates[before:]; len(got) != 1 || got[0] != "s1: -c b=B2" {
		t.Fatalf("%q; want one update with the differences", got)
	}
}

func TestRestartedAgentConfiguresProxiesWhileServerIsAway(t *testing.T) {
	p := nodetest.New(t)
	p.SetCompile(compiles(map[string]string{"a": "A", "b": "B"}))
	a, proxies1 := newProxyAgent(t, p)
	a.WatchSubject(webSubject("s1"))
	has(t, proxies1, "s1", "a=A b=B")
	_ = a.stop()
	p.Stop()
	again := &proxies{}
	a.params.OnConfig, a.params.Prover = again.onConfig, nil
	a.start()
	a.WatchSubject(webSubject("another-id-after-the-restart"))
	has(t, again, "another-id-after-the-restart", "a=A b=B")
	p.SetCompile(compiles(map[string]string{"a": "A2"}))
	p.Start()
	has(t, again, "another-id-after-the-restart", "a=A2")
}
