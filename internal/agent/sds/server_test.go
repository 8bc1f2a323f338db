package sds

import (
	"slices"
	"strings"
	"testing"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/legation-io/legation/internal/distribute"
	"github.com/prometheus/client_golang/prometheus/testutil"
	rpcstatus "google.golang.org/genproto/googleapis/rpc/status"
)

func TestDeltaStreamCarriesTypesSideBySide(t *testing.T) {
	o := newOffice(t, 0)
	o.set(mine, TypeSecret, "default", "s1")
	o.set(mine, typeCluster, "c", "c1")
	c := o.delta()
	c.ask(&discoveryv3.DeltaDiscoveryRequest{ResourceNamesSubscribe: []string{"default"}, Node: &corev3.Node{Id: "n"}})
	c.expect("default=s1")
	c.ask(&discoveryv3.DeltaDiscoveryRequest{TypeUrl: typeCluster, Node: &corev3.Node{Id: "another"}})
	c.expect("c=c1")
	c.ask(&discoveryv3.DeltaDiscoveryRequest{TypeUrl: unheard})
	c.expect("")
	c.ask(&discoveryv3.DeltaDiscoveryRequest{TypeUrl: unheard, ResourceNamesSubscribe: []string{"x"}})
	c.expect("-x")
	o.set(mine, TypeSecret, "default", "s2")
	c.expect("default=s2")
	o.until("the acknowledgement is in the ledger", func() bool { return o.line("default").Acked == distribute.VersionOf([]byte("s2")) })

	o.set(mine, TypeSecret, "default", "s3")
	m, err := c.Recv()
	if err != nil {
		t.Fatal(err)
	}
	c.ask(&discoveryv3.DeltaDiscoveryRequest{ResponseNonce: m.Nonce, ErrorDetail: &rpcstatus.Status{Code: 13, Message: "no key " + strings.Repeat("x", 5000)}})
	o.until("the refusal is in the ledger", func() bool {
		l := o.line("default")
		return strings.HasPrefix(l.Error, "no key") && len(l.Error) <= maxReason && l.Acked == distribute.VersionOf([]byte("s2"))
	})
	o.mu.Lock()
	if !slices.Equal(o.nodes, []string{"n"}) {
		t.Errorf("nodes %v", o.nodes)
	}
	o.mu.Unlock()
	c.CloseSend()
	if _, err := c.Recv(); err == nil {
		t.Error("the stream goes on after the client closed it")
	}
	o.until("the attachment is closed", func() bool { o.mu.Lock(); defer o.mu.Unlock(); return o.closed == 1 })
	if got := o.engine.Subscribers(); len(got) != 0 {
		t.Errorf("still attached: %v", got)
	}
}

func TestANameThatCannotBeServedLeavesTheStreamOpen(t *testing.T) {
	o := newOffice(t, 0)
	c := o.delta()
	c.ask(&discoveryv3.DeltaDiscoveryRequest{ResourceNamesSubscribe: []string{"late"}})
	c.expect("-late")
	c.ask(&discoveryv3.DeltaDiscoveryRequest{ResourceNamesSubscribe: []string{"late"}})
	c.expect("-late")
	o.set(mine, TypeSecret, "late", "1")
	c.expect("late=1")
	if n := strings.Count(o.log.String(), "no entry has late"); n != 1 {
		t.Errorf("explained %d times:\n%s", n, o.log)
	}
	if n := testutil.ToFloat64(o.server.metrics.missing); n != 1 {
		t.Errorf("counted %v times", n)
	}
	s := o.sotw()
	s.ask(TypeSecret, "", "later", "late")
	m := s.expect("1")
	s.ack(m)
	o.set(mine, TypeSecret, "later", "2")
	s.expect("2")
	if n := testutil.ToFloat64(o.server.metrics.missing); n != 2 {
		t.Errorf("counted %v times", n)
	}
}

func TestStateOfTheWorldSendsEverythingOfListenersAndClusters(t *testing.T) {
	o := newOffice(t, 0)
	c := o.sotw()
	c.ask(typeCluster, "")
	c.ack(c.expect())
	o.set(mine, typeCluster, "a", "a1")
	first := c.expect("a1")
	c.ack(first)
	o.set(mine, typeCluster, "b", "b1")
	m := c.expect("a1", "b1")
	if m.VersionInfo == first.VersionInfo {
		t.Error("different content, same version")
	}
	c.ack(m)
	o.unset(mine, typeCluster, "b")
	m = c.expect("a1")
	if m.VersionInfo != first.VersionInfo {
		t.Error("same content, different version")
	}
	c.ack(m)
	o.unset(mine, typeCluster, "a")
	c.ack(c.expect())
	// From the legacy wildcard to names: here "no names any more" is nothing.
	o.set(mine, typeCluster, "a", "a2")
	m = c.expect("a2")
	c.ask(typeCluster, m.Nonce, "b")
	c.ack(c.expect())
	o.set(mine, typeCluster, "a", "a3")
	o.set(mine, typeCluster, "b", "b3")
	c.ack(c.expect("b3"))
}

func TestStateOfTheWorldSendsOnlyWhatChangedOfOthers(t *testing.T) {
	o := newOffice(t, 0)
	o.set(mine, TypeSecret, "a", "a1")
	o.set(mine, TypeSecret, "b", "b1")
	c := o.sotw()
	c.ask(TypeSecret, "from an earlier stream", "a", "b")
	m1 := c.expect("a1", "b1")
	c.ack(m1)
	o.set(mine, TypeSecret, "b", "b2")
	m2 := c.expect("b2")
	// A stale nonce is ignored with all that is in the request.
	c.ask(TypeSecret, m1.Nonce, "a")
	if err := c.Send(&discoveryv3.DiscoveryRequest{TypeUrl: TypeSecret, ResponseNonce: m2.Nonce, ResourceNames: []string{"a", "b"},
		ErrorDetail: &rpcstatus.Status{Message: "bad"}}); err != nil {
		t.Fatal(err)
	}
	o.until("the refusal is in the ledger", func() bool { return o.line("b").Error == "bad" })
	if got := o.line("b").Acked; got != distribute.VersionOf([]byte("b1")) {
		t.Errorf("acknowledged %s", got)
	}
	// What is removed cannot be said, and does not stop what follows.
	o.unset(mine, TypeSecret, "a")
	o.set(mine, TypeSecret, "b", "b3")
	m3 := c.expect("b3")
	// Leaving a name and coming back is answered.
	c.ask(TypeSecret, m3.Nonce)
	c.ask(TypeSecret, m3.Nonce, "b")
	c.expect("b3")
}
