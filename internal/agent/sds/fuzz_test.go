package sds

import (
	"testing"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/legation-io/legation/internal/distribute"
	rpcstatus "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/protobuf/proto"
)

// FuzzRequests plays what a hostile proxy may send, a message per chunk, and
// holds that nothing from another's scope is ever answered.
func FuzzRequests(f *testing.F) {
	seed := func(m proto.Message) {
		b, err := proto.Marshal(m)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b, b)
	}
	seed(&discoveryv3.DeltaDiscoveryRequest{TypeUrl: TypeSecret, ResourceNamesSubscribe: []string{"*", "a"}, ResourceNamesUnsubscribe: []string{"a"}, InitialResourceVersions: map[string]string{"a": "1"}})
	seed(&discoveryv3.DiscoveryRequest{TypeUrl: typeCluster, ResourceNames: []string{"a", "*"}, ResponseNonce: "1", ErrorDetail: &rpcstatus.Status{Message: "\xff"[:0]}})
	f.Fuzz(func(t *testing.T, one, two []byte) {
		e := distribute.New(distribute.Params{})
		for _, typ := range []string{TypeSecret, typeCluster} {
			e.Apply(distribute.Change{Scope: mine, Resource: distribute.NewResource(typ, "a", []byte("mine"))},
				distribute.Change{Scope: theirs, Resource: distribute.NewResource(typ, "b", []byte("theirs"))})
		}
		s := New(Params{Engine: e, MaxNames: 8})
		for _, sotw := range []bool{false, true} {
			p := &peer{server: s, at: &Attachment{}, log: s.p.Log, explained: map[string]struct{}{},
				sub: e.Attach(distribute.SubscriberParams{ID: "p", Scopes: []distribute.Scope{mine}, MaxNames: 8, Window: 1 << 20})}
			w := &world{types: map[string]*worldType{}}
			for _, chunk := range [][]byte{one, two, one} {
				var err error
				if sotw {
					m := &discoveryv3.DiscoveryRequest{}
					if proto.Unmarshal(chunk, m) != nil {
						break
					}
					err = p.sotw(w, m, TypeSecret)
				} else {
					m := &discoveryv3.DeltaDiscoveryRequest{}
					if proto.Unmarshal(chunk, m) != nil {
						break
					}
					err = p.delta(m, TypeSecret)
				}
				if err != nil {
					break
				}
				drain(t, p, w, sotw)
			}
			p.sub.Close()
		}
	})
}

func drain(t *testing.T, p *peer, w *world, sotw bool) {
	for range 100 {
		r, err := p.sub.Poll()
		if err != nil {
			t.Fatal(err)
		}
		if r == nil {
			return
		}
		p.missing(r)
		for _, x := range r.Resources {
			if string(x.Body) != "mine" {
				t.Fatalf("%s of another scope", x.Name)
			}
		}
		if sotw {
			w.response(r)
		} else {
			deltaResponse(r)
		}
	}
	t.Fatal("answers without end")
}
