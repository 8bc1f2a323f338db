package compile

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	bootstrapv3 "github.com/envoyproxy/go-control-plane/envoy/config/bootstrap/v3"
	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	internallistenerv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/bootstrap/internal_listener/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	httpv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/upstreams/http/v3"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/legation-io/legation/internal/accesslog"
	"github.com/legation-io/legation/internal/distribute"
	"github.com/legation-io/legation/internal/envoytest"
)

// authority signs what tests need.
type authority struct {
	key  *ecdsa.PrivateKey
	cert *x509.Certificate
}

func newAuthority(t testing.TB) *authority {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test root"}, NotBefore: time.Now().Add(-time.Hour),
		NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return &authority{key, cert}
}

// issue returns a certificate and its key, PEM.
func (a *authority) issue(t testing.TB, id string) (cert, key []byte) {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	u, err := url.Parse(id)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{SerialNumber: big.NewInt(time.Now().UnixNano()), URIs: []*url.URL{u},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), KeyUsage: x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth}}, a.cert, k.Public(), a.key)
	if err != nil {
		t.Fatal(err)
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(k)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pkcs8})
}

func (a *authority) secrets(t testing.TB, id string) []*tlsv3.Secret {
	cert, key := a.issue(t, id)
	inline := func(b []byte) *corev3.DataSource {
		return &corev3.DataSource{Specifier: &corev3.DataSource_InlineBytes{InlineBytes: b}}
	}
	root := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: a.cert.Raw})
	return []*tlsv3.Secret{
		{Name: "default", Type: &tlsv3.Secret_TlsCertificate{TlsCertificate: &tlsv3.TlsCertificate{CertificateChain: inline(cert), PrivateKey: inline(key)}}},
		{Name: "ROOTCA", Type: &tlsv3.Secret_ValidationContext{ValidationContext: &tlsv3.CertificateValidationContext{TrustedCa: inline(root)}}},
	}
}

// static wraps compiled resources into a bootstrap that needs nobody: secrets
// inline, endpoints in their clusters. All else stays as compiled.
func static(t testing.TB, all []*distribute.Resource, secrets []*tlsv3.Secret) []byte {
	t.Helper()
	runtime, err := structpb.NewStruct(map[string]any{"envoy.reloadable_features.enable_send_rst_on_user_space_socket": false}) // as the agent's
	if err != nil {
		t.Fatal(err)
	}
	b := &bootstrapv3.Bootstrap{LayeredRuntime: &bootstrapv3.LayeredRuntime{Layers: []*bootstrapv3.RuntimeLayer{{
		Name: "static", LayerSpecifier: &bootstrapv3.RuntimeLayer_StaticLayer{StaticLayer: runtime}}}}, BootstrapExtensions: []*corev3.TypedExtensionConfig{{
		Name: "envoy.bootstrap.internal_listener", TypedConfig: pack(&internallistenerv3.InternalListener{})}}, StaticResources: &bootstrapv3.Bootstrap_StaticResources{Secrets: secrets}}
	endpoints := map[string]*endpointv3.ClusterLoadAssignment{}
	for _, r := range all {
		if m, ok := message(t, r).(*endpointv3.ClusterLoadAssignment); ok {
			endpoints[r.Name] = m
		}
	}
	for _, r := range all {
		switch m := message(t, r).(type) {
		case *listenerv3.Listener:
			for _, chain := range m.FilterChains {
				if chain.TransportSocket != nil {
					inline(t, chain.TransportSocket)
				}
			}
			b.StaticResources.Listeners = append(b.StaticResources.Listeners, m)
		case *clusterv3.Cluster:
			if m.TransportSocket.GetName() == "envoy.transport_sockets.tls" {
				inline(t, m.TransportSocket)
			}
			if m.EdsClusterConfig != nil {
				m.EdsClusterConfig, m.LoadAssignment = nil, endpoints[m.Name]
				m.ClusterDiscoveryType = &clusterv3.Cluster_Type{Type: clusterv3.Cluster_STATIC}
			}
			b.StaticResources.Clusters = append(b.StaticResources.Clusters, m)
		}
	}
	h2 := &httpv3.HttpProtocolOptions{UpstreamProtocolOptions: &httpv3.HttpProtocolOptions_ExplicitHttpConfig_{
		ExplicitHttpConfig: &httpv3.HttpProtocolOptions_ExplicitHttpConfig{ProtocolConfig: &httpv3.HttpProtocolOptions_ExplicitHttpConfig_Http2ProtocolOptions{
			Http2ProtocolOptions: &corev3.Http2ProtocolOptions{}}}}}
	b.StaticResources.Clusters = append(b.StaticResources.Clusters, &clusterv3.Cluster{Name: accesslog.Cluster,
		TypedExtensionProtocolOptions: map[string]*anypb.Any{"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": pack(h2)}})
	out, err := protojson.Marshal(b)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// inline makes a TLS context take its secrets from the bootstrap.
func inline(t testing.TB, socket *corev3.TransportSocket) {
	if socket == nil {
		return
	}
	m, err := socket.GetTypedConfig().UnmarshalNew()
	if err != nil {
		t.Fatal(err)
	}
	common := m.(interface {
		GetCommonTlsContext() *tlsv3.CommonTlsContext
	}).GetCommonTlsContext()
	for _, s := range common.TlsCertificateSdsSecretConfigs {
		s.SdsConfig = nil
	}
	common.GetCombinedValidationContext().ValidationContextSdsSecretConfig.SdsConfig = nil
	socket.ConfigType = &corev3.TransportSocket_TypedConfig{TypedConfig: pack(m)}
}

func TestRealEnvoyAcceptsWhatIsCompiled(t *testing.T) {
	binary := envoytest.Binary(t)
	ca := newAuthority(t)
	for _, file := range inputs(t) {
		t.Run(filepath.Base(file), func(t *testing.T) {
			snapshot, subject, o := readInput(t, file)
			all, err := Proxy(snapshot, subject, o)
			if err != nil {
				t.Fatal(err)
			}
			config := filepath.Join(t.TempDir(), "bootstrap.json")
			if err := os.WriteFile(config, static(t, all, ca.secrets(t, "spiffe://example.org/ns/shop/sa/web")), 0o600); err != nil {
				t.Fatal(err)
			}
			out, err := exec.CommandContext(t.Context(), binary, "--mode", "validate", "-c", config, "-l", "error",
				"--service-node", "test", "--service-cluster", "test").CombinedOutput()
			if err != nil {
				t.Errorf("Envoy refuses it: %v\n%s", err, out)
			}
		})
	}
}
