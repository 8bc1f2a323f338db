package sds

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	secretv3 "github.com/envoyproxy/go-control-plane/envoy/service/secret/v3"
	"github.com/legation-io/legation/internal/distribute"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// A proxy asks for another's secret in every way the protocol has.
func TestA49NoNameReachesOutsideTheScopes(t *testing.T) {
	const secret = "spiffe://example.org/ns/a/sa/theirs"
	o := newOffice(t, 0)
	o.set(mine, TypeSecret, "default", "mine")
	o.set(theirs, TypeSecret, secret, "THEIRS")
	o.set(theirs, TypeSecret, "default", "THEIRS")
	forged := &corev3.Node{Id: "theirs", Cluster: "session/theirs"}
	names := []string{secret, string(theirs), "session/theirs/default", "../theirs/default", "default\x00", "*/default", "xdstp://session/theirs/default"}

	t.Run("delta", func(t *testing.T) {
		c := o.delta()
		c.T = t
		c.ask(&discoveryv3.DeltaDiscoveryRequest{Node: forged, ResourceNamesSubscribe: []string{secret}, InitialResourceVersions: map[string]string{secret: distribute.VersionOf([]byte("THEIRS"))}})
		c.expect("-" + secret)
		c.ask(&discoveryv3.DeltaDiscoveryRequest{ResourceNamesSubscribe: []string{"*"}})
		c.expect("default=mine")
		c.ask(&discoveryv3.DeltaDiscoveryRequest{ResourceNamesUnsubscribe: []string{secret}})
		c.expect("-" + secret)
		c.ask(&discoveryv3.DeltaDiscoveryRequest{ResourceNamesSubscribe: []string{secret}, ResourceNamesUnsubscribe: []string{secret}})
		c.expect("-" + secret)
		for _, name := range names {
			c.ask(&discoveryv3.DeltaDiscoveryRequest{Node: forged, ResourceNamesSubscribe: []string{name}})
			c.expect("-" + name)
		}
		o.set(theirs, TypeSecret, secret, "THEIRS again")
		o.set(mine, TypeSecret, "default", "mine again")
		c.expect("default=mine again")
	})
	t.Run("state of the world", func(t *testing.T) {
		c := o.sotw()
		c.T = t
		c.ask(TypeSecret, "", append(slices.Clone(names), "*", "default")...)
		m := c.expect("mine again")
		c.ask(TypeSecret, m.Nonce, secret)
		o.set(theirs, TypeSecret, secret, "THEIRS once more")
		c.ask(TypeSecret, m.Nonce, "default", secret)
		c.expect("mine again")
	})
	t.Run("unary", func(t *testing.T) {
		for _, name := range names {
			m, err := secretv3.NewSecretDiscoveryServiceClient(o.conn).FetchSecrets(o.ctx, &discoveryv3.DiscoveryRequest{Node: forged, ResourceNames: []string{name}})
			if status.Code(err) != codes.NotFound {
				t.Errorf("%q: %v %v", name, m, err)
			}
		}
		m, err := secretv3.NewSecretDiscoveryServiceClient(o.conn).FetchSecrets(o.ctx, &discoveryv3.DiscoveryRequest{Node: forged})
		if err != nil || len(m.Resources) != 1 || string(m.Resources[0].Value) != "mine again" {
			t.Errorf("%v %v", m, err)
		}
	})
	if log := o.log.String(); !strings.Contains(log, fmt.Sprintf("%q", names[0])) && !strings.Contains(log, "name="+names[0]) {
		t.Errorf("the attempt is not in the log:\n%s", log)
	}
	for _, l := range o.engine.Statuses(distribute.Filter{Name: secret}) {
		if l.Sent != "" {
			t.Errorf("sent: %+v", l)
		}
	}
}
