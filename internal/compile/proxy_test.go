package compile

import (
	"strings"
	"testing"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	tcpproxyv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/tcp_proxy/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/protobuf/proto"

	nodev1 "github.com/legation-io/legation/api/node/v1"
	"github.com/legation-io/legation/internal/fault"
)

const oneIdentity = `
apiVersion: legation.io/v1alpha1
kind: WorkloadIdentity
metadata: {name: web, namespace: shop}
spec: {node: web-1, selectors: ["unix:uid:1000"]}
`

func TestSubjectIsJudged(t *testing.T) {
	s := apply(t, open(t), oneIdentity)
	good := func(change func(*nodev1.Subject)) *nodev1.Subject {
		subject := &nodev1.Subject{Id: "x", Entry: "shop/web", SpiffeId: "spiffe://example.org/ns/shop/sa/web", Mode: nodev1.Mode_MODE_EXPLICIT,
			Inbound:  []*nodev1.Inbound{{Listen: "0.0.0.0:8443", App: "127.0.0.1:8080"}},
			Outbound: []*nodev1.Outbound{{Service: "api", Port: 80, Listen: "127.0.0.1:9000"}}}
		change(subject)
		return subject
	}
	capture := func(s *nodev1.Subject) { s.Mode, s.Outbound, s.Inbound[0].Listen = nodev1.Mode_MODE_CAPTURE, nil, "" }
	other := testOptions
	other.Node = "web-2"
	foreign := testOptions
	foreign.TrustDomain = spiffeid.RequireTrustDomainFromString("other.org")
	for name, test := range map[string]struct {
		change  func(*nodev1.Subject)
		options Options
		want    fault.Kind
	}{
		"a good one":                          {func(*nodev1.Subject) {}, testOptions, ""},
		"a good captured one":                 {capture, testOptions, ""},
		"an entry that does not exist":        {func(s *nodev1.Subject) { s.Entry = "shop/gone" }, testOptions, fault.NotFound},
		"an entry of another node":            {func(*nodev1.Subject) {}, other, fault.NotFound},
		"an identity that is not the entry's": {func(s *nodev1.Subject) { s.SpiffeId = "spiffe://example.org/ns/shop/sa/db" }, testOptions, fault.Denied},
		"another trust domain":                {func(*nodev1.Subject) {}, foreign, fault.Invalid},
		"no mode":                             {func(s *nodev1.Subject) { s.Mode = 0 }, testOptions, fault.Invalid},
		"a mode of tomorrow":                  {func(s *nodev1.Subject) { s.Mode = 9 }, testOptions, fault.Invalid},
		"an app that is not on loopback":      {func(s *nodev1.Subject) { s.Inbound[0].App = "10.0.0.1:80" }, testOptions, fault.Invalid},
		"an app without a port":               {func(s *nodev1.Subject) { s.Inbound[0].App = "127.0.0.1" }, testOptions, fault.Invalid},
		"no listen":                           {func(s *nodev1.Subject) { s.Inbound[0].Listen = "" }, testOptions, fault.Invalid},
		"an outbound open to the network":     {func(s *nodev1.Subject) { s.Outbound[0].Listen = "0.0.0.0:9000" }, testOptions, fault.Invalid},
		"one listen for two":                  {func(s *nodev1.Subject) { s.Inbound[0].Listen = "127.0.0.1:9000" }, testOptions, fault.Invalid},
		"a service that is no name":           {func(s *nodev1.Subject) { s.Outbound[0].Service = "Api|x" }, testOptions, fault.Invalid},
		"a port that is none":                 {func(s *nodev1.Subject) { s.Outbound[0].Port = 70000 }, testOptions, fault.Invalid},
		"captured and yet listening":          {func(s *nodev1.Subject) { capture(s); s.Inbound[0].Listen = "0.0.0.0:1" }, testOptions, fault.Invalid},
		"captured, with local ports":          {func(s *nodev1.Subject) { s.Mode = nodev1.Mode_MODE_CAPTURE; s.Inbound = nil }, testOptions, fault.Invalid},
		"captured, the proxy's own port":      {func(s *nodev1.Subject) { capture(s); s.Inbound[0].App = "127.0.0.1:15006" }, testOptions, fault.Invalid},
		"captured, one port twice":            {func(s *nodev1.Subject) { capture(s); s.Inbound = append(s.Inbound, &nodev1.Inbound{App: "[::1]:8080"}) }, testOptions, fault.Invalid},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := Proxy(s, good(test.change), test.options)
			if test.want == "" && err != nil || test.want != "" && !fault.Is(err, test.want) {
				t.Errorf("got %v, want %s", err, test.want)
			}
		})
	}
}

// Whatever is declared, no TLS context goes without what the design demands:
// of every golden input, every context is looked at.
func TestA25A36A42EveryTLSContextIsStrict(t *testing.T) {
	contexts := 0
	for _, file := range inputs(t) {
		snapshot, subject, o := readInput(t, file)
		all, err := Proxy(snapshot, subject, o)
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range all {
			switch m := message(t, r).(type) {
			case *listenerv3.Listener:
				if m.GetInternalListener() != nil {
					if m.Address != nil || len(m.AdditionalAddresses) > 0 {
						t.Errorf("%s: a listener within Envoy can be reached from outside", m.Name)
					}
					continue
				}
				for _, chain := range m.FilterChains {
					if m.TrafficDirection != corev3.TrafficDirection_INBOUND || chain.Name == "nothing" {
						continue
					}
					contexts++
					strictServer(t, r.Name, chain)
				}
			case *clusterv3.Cluster:
				if strings.HasPrefix(m.Name, "inbound|") {
					if a := m.LoadAssignment.Endpoints[0].LbEndpoints[0].GetEndpoint().Address.GetSocketAddress().Address; a != "127.0.0.1" && a != "::1" {
						t.Errorf("%s: plaintext leaves the machine, to %s", m.Name, a)
					}
					continue
				}
				if strings.HasPrefix(m.Name, "http|") {
					for _, e := range m.LoadAssignment.Endpoints[0].LbEndpoints {
						if e.GetEndpoint().Address.GetEnvoyInternalAddress().GetServerListenerName() != m.Name {
							t.Errorf("%s: plaintext leaves Envoy", m.Name)
						}
					}
					continue
				}
				contexts++
				strictClient(t, m)
			}
		}
	}
	if contexts < 10 {
		t.Errorf("only %d contexts looked at", contexts)
	}
}

func strictServer(t *testing.T, name string, chain *listenerv3.FilterChain) {
	tls := new(tlsv3.DownstreamTlsContext)
	if chain.TransportSocket == nil || chain.TransportSocket.GetTypedConfig().UnmarshalTo(tls) != nil {
		t.Errorf("%s: a chain accepts plaintext", name)
		return
	}
	if !tls.RequireClientCertificate.GetValue() || !tls.GetDisableStatelessSessionResumption() || !tls.DisableStatefulSessionResumption {
		t.Errorf("%s: anonymous or resumed sessions: %v", name, tls)
	}
	if d := chain.TransportSocketConnectTimeout.AsDuration(); d <= 0 || d > handshakeTimeout {
		t.Errorf("%s: a handshake may take %s", name, d)
	}
	proxy := new(tcpproxyv3.TcpProxy)
	if err := chain.Filters[len(chain.Filters)-1].GetTypedConfig().UnmarshalTo(proxy); err != nil {
		t.Fatal(err)
	}
	if proxy.UpstreamConnectMode != tcpproxyv3.UpstreamConnectMode_ON_DOWNSTREAM_TLS_HANDSHAKE || proxy.MaxEarlyDataBytes == nil || proxy.MaxEarlyDataBytes.Value != 0 {
		t.Errorf("%s: the program sees a peer before it is verified", name)
	}
	strictCommon(t, name, tls.CommonTlsContext)
}

func strictClient(t *testing.T, c *clusterv3.Cluster) {
	tls := new(tlsv3.UpstreamTlsContext)
	if c.TransportSocket == nil || c.TransportSocket.GetTypedConfig().UnmarshalTo(tls) != nil {
		t.Errorf("%s: plaintext to another workload", c.Name)
		return
	}
	if tls.MaxSessionKeys == nil || tls.MaxSessionKeys.Value != 0 || tls.AllowRenegotiation {
		t.Errorf("%s: sessions are resumed", c.Name)
	}
	for _, m := range tls.CommonTlsContext.GetCombinedValidationContext().DefaultValidationContext.MatchTypedSubjectAltNames {
		if m.Matcher.GetExact() == "" {
			t.Errorf("%s: trusts more than named identities: %v", c.Name, m)
		}
	}
	strictCommon(t, c.Name, tls.CommonTlsContext)
}

func strictCommon(t *testing.T, name string, c *tlsv3.CommonTlsContext) {
	if c.TlsParams.TlsMinimumProtocolVersion != tlsv3.TlsParameters_TLSv1_3 || c.TlsParams.TlsMaximumProtocolVersion != tlsv3.TlsParameters_TLSv1_3 {
		t.Errorf("%s: not TLS 1.3 alone", name)
	}
	v := c.GetCombinedValidationContext()
	if v == nil || v.ValidationContextSdsSecretConfig.Name != "ROOTCA" || v.DefaultValidationContext.CustomValidatorConfig != nil {
		t.Fatalf("%s: not the default validator with our roots", name)
	}
	names := v.DefaultValidationContext.MatchTypedSubjectAltNames
	if len(names) == 0 {
		t.Errorf("%s: no name is checked", name)
	}
	for _, m := range names { // A26: in no other type of SAN
		if m.SanType != tlsv3.SubjectAltNameMatcher_URI || !strings.HasPrefix(m.Matcher.GetExact()+m.Matcher.GetSafeRegex().GetRegex(), "spiffe://example") || m.Matcher.GetPrefix() != "" {
			t.Errorf("%s: checks %v", name, m)
		}
	}
}

// FuzzSubject: an agent may ask for anything; what is compiled then is valid.
func FuzzSubject(f *testing.F) {
	for _, s := range []*nodev1.Subject{
		{Entry: "shop/web", Mode: nodev1.Mode_MODE_CAPTURE, Inbound: []*nodev1.Inbound{{App: "[::1]:80"}}},
		{Entry: "shop/web", Mode: nodev1.Mode_MODE_EXPLICIT, Inbound: []*nodev1.Inbound{{Listen: "0.0.0.0:1", App: "127.0.0.1:80"}},
			Outbound: []*nodev1.Outbound{{Service: "api.shop.svc.cluster.local", Port: 80, Listen: "127.0.0.1:2"}}},
		{Entry: "shop/web", Mode: nodev1.Mode_MODE_EXPLICIT, Outbound: []*nodev1.Outbound{{Service: "a|b", Port: 1 << 31, Listen: "[fe80::1%eth0]:2"}}},
	} {
		b, _ := proto.Marshal(s)
		f.Add(b)
	}
	s := apply(f, open(f), oneIdentity)
	f.Fuzz(func(t *testing.T, b []byte) {
		subject := new(nodev1.Subject)
		if proto.Unmarshal(b, subject) != nil {
			return
		}
		all, err := Proxy(s, subject, testOptions)
		if err != nil {
			if fault.KindOf(err) == fault.Internal {
				t.Fatal(err)
			}
			return
		}
		for _, r := range all {
			if m, ok := message(t, r).(validated); !ok || m.ValidateAll() != nil {
				t.Fatal(r.Name)
			}
		}
	})
}
