package sds

import (
	"encoding/json"
	"testing"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/router/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	"github.com/legation-io/legation/internal/agent/svid"
	"github.com/legation-io/legation/internal/distribute"
	"go.yaml.in/yaml/v3"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
)

func spiffeValidator(t testing.TB, p *pki, trust *svid.Trust) *distribute.Resource {
	t.Helper()
	config, err := anypb.New(&tlsv3.SPIFFECertValidatorConfig{TrustDomains: []*tlsv3.SPIFFECertValidatorConfig_TrustDomain{{
		Name: td, TrustBundle: inline(encode("CERTIFICATE", trust.Roots[td]))}}})
	if err != nil {
		t.Fatal(err)
	}
	body, err := proto.Marshal(&tlsv3.Secret{Name: "spiffe-validator", Type: &tlsv3.Secret_ValidationContext{ValidationContext: &tlsv3.CertificateValidationContext{
		Crl:                   inline(encode("X509 CRL", trust.CRLs[td])),
		CustomValidatorConfig: &corev3.TypedExtensionConfig{Name: "envoy.tls.cert_validator.spiffe", TypedConfig: config},
	}}})
	if err != nil {
		t.Fatal(err)
	}
	return distribute.NewResource(TypeSecret, "spiffe-validator", body)
}

func listenerResource(t testing.TB, text string) *distribute.Resource {
	t.Helper()
	var tree any
	if err := yaml.Unmarshal([]byte(text), &tree); err != nil {
		t.Fatal(err)
	}
	asJSON, err := json.Marshal(tree)
	if err != nil {
		t.Fatal(err)
	}
	var l listenerv3.Listener
	if err := protojson.Unmarshal(asJSON, &l); err != nil {
		t.Fatal(err)
	}
	body, err := proto.Marshal(&l)
	if err != nil {
		t.Fatal(err)
	}
	return distribute.NewResource(typeListener, l.Name, body)
}
