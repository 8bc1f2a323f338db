package acmesds

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"fmt"
	"slices"
	"strconv"
	"strings"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	secretv3 "github.com/envoyproxy/go-control-plane/envoy/service/secret/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/anypb"
)

const typeSecret = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret"

// StreamSecrets implements SDS, state of the world: what a gateway names is
// sent when it is there, and again whenever it changes.
func (s *Server) StreamSecrets(stream secretv3.SecretDiscoveryService_StreamSecretsServer) error {
	g := &gateway{server: s}
	return serveStream(s, stream, g.receive, func(certificates map[string]*tls.Certificate) error { return g.push(stream, certificates) })
}

// serveStream runs one stream of either protocol: receive takes a request,
// push sends what is due.
func serveStream[R any](s *Server, stream interface {
	Context() context.Context
	Recv() (R, error)
}, receive func(R) error, push func(map[string]*tls.Certificate) error) error {
	select {
	case s.slots <- struct{}{}:
		defer func() { <-s.slots }()
	default:
		return status.Errorf(codes.ResourceExhausted, "%d streams are open, the limit", cap(s.slots))
	}
	s.streams.Inc()
	defer s.streams.Dec()
	ctx, cancel := context.WithCancel(stream.Context())
	defer cancel()
	requests := make(chan R)
	failed := make(chan error, 1)
	s.readers.Go(func() { // ends with the stream
		for {
			r, err := stream.Recv()
			if err != nil {
				failed <- err
				return
			}
			select {
			case requests <- r:
			case <-ctx.Done():
				return
			}
		}
	})
	for {
		certificates, changed := s.config.Source.Certificates()
		if err := push(certificates); err != nil {
			return err
		}
		select {
		case r := <-requests:
			if err := receive(r); err != nil {
				return err
			}
		case <-changed:
		case <-ctx.Done(): // the reader may have ended without a word
			return ctx.Err()
		case err := <-failed:
			if stream.Context().Err() != nil {
				return stream.Context().Err()
			}
			return err
		}
	}
}

// gateway is what one stream asked for and has.
type gateway struct {
	server *Server
	names  []string
	sent   string // version
	nonce  int
}

func (g *gateway) receive(r *discoveryv3.DiscoveryRequest) error {
	if err := checkType(r.GetTypeUrl()); err != nil {
		return err
	}
	if len(r.GetResourceNames()) > maxNames {
		return status.Errorf(codes.InvalidArgument, "%d names in one stream: at most %d", len(r.GetResourceNames()), maxNames)
	}
	if r.GetResponseNonce() != "" && r.GetResponseNonce() != strconv.Itoa(g.nonce) {
		return nil // about what was sent before: overtaken
	}
	g.server.answered(r.GetResponseNonce(), r.GetErrorDetail(), g.names)
	names := slices.Clone(r.GetResourceNames())
	slices.Sort(names)
	if names = slices.Compact(names); !slices.Equal(names, g.names) {
		g.names, g.sent = names, ""
	}
	return nil
}

// push sends what was asked for, if it is there and differs from what was
// sent. A secret that is not there yet is waited for: an answer without it
// would be an error to a gateway that starts.
func (g *gateway) push(stream secretv3.SecretDiscoveryService_StreamSecretsServer, certificates map[string]*tls.Certificate) error {
	resp, err := respond(g.names, certificates)
	if err != nil {
		g.server.log.Error("a certificate cannot be handed over", "error", err)
		return nil // the others of other streams can; this one has the last
	}
	if resp == nil || resp.VersionInfo == g.sent {
		return nil
	}
	g.nonce++
	resp.Nonce = strconv.Itoa(g.nonce)
	if err := stream.Send(resp); err != nil {
		return err
	}
	g.sent = resp.VersionInfo
	g.server.responses.WithLabelValues("sent").Inc()
	return nil
}

// FetchSecrets implements SDS for who asks once. Unavailable while none of the
// names is there.
func (s *Server) FetchSecrets(_ context.Context, r *discoveryv3.DiscoveryRequest) (*discoveryv3.DiscoveryResponse, error) {
	g := &gateway{server: s}
	if err := g.receive(&discoveryv3.DiscoveryRequest{TypeUrl: r.GetTypeUrl(), ResourceNames: r.GetResourceNames()}); err != nil {
		return nil, err
	}
	certificates, _ := s.config.Source.Certificates()
	resp, err := respond(g.names, certificates)
	if err == nil && resp == nil {
		return nil, status.Error(codes.Unavailable, "there is no certificate of these names yet")
	}
	return resp, err
}

// respond makes the response; nil when none of the names is there.
func respond(names []string, certificates map[string]*tls.Certificate) (*discoveryv3.DiscoveryResponse, error) {
	resp := &discoveryv3.DiscoveryResponse{TypeUrl: typeSecret}
	version := sha256.New()
	for _, name := range names {
		c := certificates[name]
		if c == nil {
			c = certificates[strings.ToLower(name)]
		}
		if c == nil {
			continue
		}
		secret, err := secretOf(name, c)
		if err != nil {
			return nil, fmt.Errorf("the certificate of %s: %w", name, err)
		}
		resource, err := anypb.New(secret)
		if err != nil {
			return nil, err
		}
		resp.Resources = append(resp.Resources, resource)
		fmt.Fprintf(version, "%d %s %d ", len(name), name, len(c.OCSPStaple))
		version.Write(c.Certificate[0]) // names its key, too
		version.Write(c.OCSPStaple)
	}
	if len(resp.Resources) == 0 {
		return nil, nil
	}
	resp.VersionInfo = hex.EncodeToString(version.Sum(nil)[:16])
	return resp, nil
}

func secretOf(name string, c *tls.Certificate) (*tlsv3.Secret, error) {
	key, err := x509.MarshalPKCS8PrivateKey(c.PrivateKey)
	if err != nil {
		return nil, err
	}
	var chain []byte
	for _, der := range c.Certificate {
		chain = append(chain, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})...)
	}
	certificate := &tlsv3.TlsCertificate{
		CertificateChain: inline(chain),
		PrivateKey:       inline(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: key})),
	}
	if len(c.OCSPStaple) > 0 {
		certificate.OcspStaple = inline(c.OCSPStaple)
	}
	return &tlsv3.Secret{Name: name, Type: &tlsv3.Secret_TlsCertificate{TlsCertificate: certificate}}, nil
}

func inline(b []byte) *corev3.DataSource {
	return &corev3.DataSource{Specifier: &corev3.DataSource_InlineBytes{InlineBytes: b}}
}
