package light

import (
	"errors"
	"net"
	"slices"
	"sync"
	"testing"
	"time"

	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	secretv3 "github.com/envoyproxy/go-control-plane/envoy/service/secret/v3"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/legation-io/legation/sdk/internal/pkitest"
)

// secretServer answers each subscription with the secrets of the moment.
type secretServer struct {
	secretv3.UnimplementedSecretDiscoveryServiceServer
	t testing.TB

	mu      sync.Mutex // guards what follows
	secrets []*tlsv3.Secret
	changed chan struct{}
	acks    []string
}

func (s *secretServer) set(secrets []*tlsv3.Secret) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.secrets = secrets
	close(s.changed)
	s.changed = make(chan struct{})
}

func (s *secretServer) StreamSecrets(stream secretv3.SecretDiscoveryService_StreamSecretsServer) error {
	first, err := stream.Recv()
	if err != nil {
		return err
	}
	if !slices.Equal(first.ResourceNames, []string{"default", "ROOTCA"}) || first.TypeUrl != typeSecret {
		return errors.New("another request")
	}
	for n := 1; ; n++ {
		s.mu.Lock()
		secrets, changed := s.secrets, s.changed
		s.mu.Unlock()
		r := &discoveryv3.DiscoveryResponse{VersionInfo: string(rune('0' + n)), Nonce: string(rune('a' + n)), TypeUrl: typeSecret}
		for _, secret := range secrets {
			a, err := anypb.New(secret)
			if err != nil {
				return err
			}
			r.Resources = append(r.Resources, a)
		}
		if err := stream.Send(r); err != nil {
			return err
		}
		ack, err := stream.Recv()
		if err != nil {
			return err
		}
		s.mu.Lock()
		s.acks = append(s.acks, ack.VersionInfo+ack.ResponseNonce)
		s.mu.Unlock()
		select {
		case <-changed:
		case <-stream.Context().Done():
			return stream.Context().Err()
		}
	}
}

func TestSDSIsAnIdentityToo(t *testing.T) {
	d := pkitest.New(t, "example.org", nil)
	fake := &secretServer{t: t, changed: make(chan struct{}), secrets: sdsSecrets(t, d, "default")}
	path := t.TempDir() + "/s"
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	g := grpc.NewServer()
	secretv3.RegisterSecretDiscoveryServiceServer(g, fake)
	done := make(chan struct{})
	go func() { defer close(done); _ = g.Serve(l) }()
	defer func() { g.Stop(); <-done }()
	c := Config{Addr: "unix://" + path, SDS: &SDS{}}
	once, sizes, err := FetchSizes(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	if once.ID != d.ID("/a") || len(once.Trust.Roots[d.TrustDomain]) != 1 {
		t.Errorf("%+v", once)
	}
	if sizes.Wire <= sizes.PEM || sizes.PEM <= sizes.DER {
		t.Errorf("sizes %+v; the wire has PEM", sizes)
	}
	s, err := Open(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	for range 3 {
		before, changed, err := s.Current()
		if err != nil {
			t.Fatal(err)
		}
		fake.set(sdsSecrets(t, d, "default"))
		select {
		case <-changed:
		case <-time.After(time.Minute):
			t.Fatal("the renewed certificate did not come")
		}
		if after, _, err := s.Current(); err != nil || after.Certificate == before.Certificate || after.Trust != before.Trust {
			t.Errorf("%+v, %v", after, err)
		}
	}
	fake.mu.Lock()
	defer fake.mu.Unlock()
	if !slices.Contains(fake.acks, "3d") {
		t.Errorf("acknowledged were %q", fake.acks)
	}
}
