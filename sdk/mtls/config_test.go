package mtls_test

import (
	"crypto/x509"
	"strings"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/legation-io/legation/sdk/identity"
	"github.com/legation-io/legation/sdk/mtls"
)

func TestAConfigurationThatDoesNotSayEnoughIsRefusedWithWhatToSet(t *testing.T) {
	source := &identity.Memory{}
	domain := spiffeid.RequireTrustDomainFromString("example.org")
	anyone := mtls.AuthorizeMemberOf(domain)
	byHost := mtls.AuthorizeHosts(map[string][]spiffeid.ID{"x": {spiffeid.RequireFromPath(domain, "/x")}})
	for _, tt := range []struct {
		name   string
		server *mtls.ServerConfig
		client *mtls.ClientConfig
		want   string
	}{
		{"a zero server", &mtls.ServerConfig{}, nil, "no Source is set"},
		{"a zero client", nil, &mtls.ClientConfig{}, "no Source is set"},
		{"a server without an authoriser", &mtls.ServerConfig{Source: source}, nil, "no Authorize is set"},
		{"a client without an authoriser", nil, &mtls.ClientConfig{Source: source}, "no Authorize is set"},
		{"an authoriser of nobody", &mtls.ServerConfig{Source: source, Authorize: mtls.AuthorizeID()}, nil, "names no SPIFFE ID"},
		{"a zero SPIFFE ID", &mtls.ServerConfig{Source: source, Authorize: mtls.AuthorizeID(spiffeid.ID{})}, nil, "zero SPIFFE ID"},
		{"no trust domain", &mtls.ServerConfig{Source: source, Authorize: mtls.AuthorizeMemberOf()}, nil, "names no trust domain"},
		{"a zero trust domain", &mtls.ServerConfig{Source: source, Authorize: mtls.AuthorizeMemberOf(spiffeid.TrustDomain{})}, nil, "zero trust domain"},
		{"a path in no trust domain", &mtls.ServerConfig{Source: source, Authorize: mtls.AuthorizePath(spiffeid.TrustDomain{}, "/a")}, nil, "needs a trust domain"},
		{"no pattern", &mtls.ServerConfig{Source: source, Authorize: mtls.AuthorizePath(domain)}, nil, "names no pattern"},
		{"a pattern that matches nothing", &mtls.ServerConfig{Source: source, Authorize: mtls.AuthorizePath(domain, "/a/../b")}, nil, `segment ".."`},
		{"no function", &mtls.ServerConfig{Source: source, Authorize: mtls.AuthorizeFunc(nil)}, nil, "no function"},
		{"no go-spiffe function", &mtls.ServerConfig{Source: source, Authorize: mtls.AuthorizeSPIFFE(nil)}, nil, "no function"},
		{"any of nothing", &mtls.ServerConfig{Source: source, Authorize: mtls.AuthorizeAnyOf()}, nil, "AuthorizeAnyOf is empty"},
		{"all of nothing", &mtls.ServerConfig{Source: source, Authorize: mtls.AuthorizeAllOf()}, nil, "AuthorizeAllOf is empty"},
		{"a zero part", &mtls.ServerConfig{Source: source, Authorize: mtls.AuthorizeAnyOf(anyone, mtls.Authorizer{})}, nil, "zero Authorizer"},
		{"an impossible part", &mtls.ServerConfig{Source: source, Authorize: mtls.AuthorizeAllOf(anyone, mtls.AuthorizeID())}, nil, "AuthorizeAllOf: AuthorizeID names no SPIFFE ID"},
		{"clients by host", &mtls.ServerConfig{Source: source, Authorize: byHost}, nil, "authorises servers by name"},
		{"clients by host, in parts", &mtls.ServerConfig{Source: source, Authorize: mtls.AuthorizeAnyOf(anyone, byHost)}, nil, "authorises servers by name"},
		{"clients by public name", &mtls.ServerConfig{Source: source, Authorize: mtls.AuthorizeServerName([]*x509.Certificate{{}})}, nil, "authorises servers by name"},
		{"public names without roots", nil, &mtls.ClientConfig{Source: source, Authorize: mtls.AuthorizeServerName(nil)}, "has no roots"},
		{"public names or SPIFFE IDs", nil, &mtls.ClientConfig{Source: source, Authorize: mtls.AuthorizeAnyOf(anyone, mtls.AuthorizeServerName([]*x509.Certificate{{}}))}, "stands alone"},
		{"no hosts", nil, &mtls.ClientConfig{Source: source, Authorize: mtls.AuthorizeHosts(nil)}, "names no host"},
		{"a host of nobody", nil, &mtls.ClientConfig{Source: source, Authorize: mtls.AuthorizeHosts(map[string][]spiffeid.ID{"x": nil})}, `host "x"`},
		{"an unknown profile", &mtls.ServerConfig{Source: source, Authorize: anyone, Profile: 99}, nil, "is no profile"},
		{"the strict profile where suites are not chosen", &mtls.ServerConfig{Source: source, Authorize: anyone, Profile: mtls.Strict}, nil, "sdk/aes256gcm"},
		{"a handshake without end", &mtls.ServerConfig{Source: source, Authorize: anyone, HandshakeTimeout: -1}, nil, "every handshake has an end"},
		{"a negative number of handshakes", &mtls.ServerConfig{Source: source, Authorize: anyone, MaxHandshakes: -1}, nil, "MaxHandshakes is -1"},
		{"a required protocol that has no name", &mtls.ServerConfig{Source: source, Authorize: anyone, RequireALPN: true}, nil, "RequireALPN needs NextProtos"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var err error
			if tt.server != nil {
				_, err = mtls.NewServer(*tt.server)
				if _, also := mtls.NewListener(nil, *tt.server); also == nil {
					t.Error("NewListener takes it")
				}
				if _, also := mtls.Listen("tcp", "127.0.0.1:0", *tt.server); also == nil {
					t.Error("Listen takes it")
				}
			} else {
				_, err = mtls.NewDialer(*tt.client)
			}
			if err == nil || !strings.Contains(err.Error(), tt.want) || !strings.HasPrefix(err.Error(), "mtls.") {
				t.Errorf("got %v, want %q in it", err, tt.want)
			}
		})
	}
}

func TestZeroValuesAreTheDocumentedDefaults(t *testing.T) {
	if mtls.DefaultHandshakeTimeout > 10*time.Second || mtls.DefaultMaxLifetime != 72*time.Hour {
		t.Errorf("a handshake may take %s, a certificate live %s", mtls.DefaultHandshakeTimeout, mtls.DefaultMaxLifetime)
	}
	var p mtls.Profile
	if p != mtls.Default || p.String() != "default" || mtls.Strict.String() != "strict" || mtls.Constrained.String() != "constrained" {
		t.Error("profile names")
	}
}
