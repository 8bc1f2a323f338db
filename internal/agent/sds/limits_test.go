package sds

import (
	"context"
	"slices"
	"strings"
	"testing"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	secretv3 "github.com/envoyproxy/go-control-plane/envoy/service/secret/v3"
	"github.com/legation-io/legation/internal/distribute"
	"github.com/legation-io/legation/internal/fault"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
)

func TestUnaryFetch(t *testing.T) {
	o := newOffice(t, 3)
	o.set(mine, TypeSecret, "a", "a1")
	o.set(mine, TypeSecret, "b", "b1")
	o.set(theirs, TypeSecret, "c", "c1")
	client := secretv3.NewSecretDiscoveryServiceClient(o.conn)
	for name, c := range map[string]struct {
		ask  []string
		want []string
		code codes.Code
		says string
	}{
		"by name":                             {ask: []string{"b", "b"}, want: []string{"b1"}},
		"without names everything it may see": {want: []string{"a1", "b1"}},
		"the wildcard too":                    {ask: []string{"*"}, want: []string{"a1", "b1"}},
		"a missing name is explained":         {ask: []string{"a", "x"}, code: codes.NotFound, says: "x: no entry has x"},
		"another's name is missing":           {ask: []string{"c"}, code: codes.NotFound, says: "c: no entry has c"},
		"too many names":                      {ask: []string{"1", "2", "3", "4"}, code: codes.ResourceExhausted, says: "limit is 3"},
		"a name too long":                     {ask: []string{strings.Repeat("x", maxName+1)}, code: codes.ResourceExhausted, says: "bytes"},
	} {
		t.Run(name, func(t *testing.T) {
			m, err := client.FetchSecrets(o.ctx, &discoveryv3.DiscoveryRequest{ResourceNames: c.ask})
			if status.Code(err) != c.code || c.says != "" && !strings.Contains(err.Error(), c.says) {
				t.Fatalf("%v", err)
			}
			var got []string
			for _, r := range m.GetResources() {
				got = append(got, string(r.Value))
			}
			if !slices.Equal(got, c.want) {
				t.Errorf("got %v, want %v", got, c.want)
			}
		})
	}
}

func TestLimitsOfAStreamAreTyped(t *testing.T) {
	for name, c := range map[string]struct {
		ask  *discoveryv3.DeltaDiscoveryRequest
		code codes.Code
	}{
		"too many names":      {&discoveryv3.DeltaDiscoveryRequest{TypeUrl: TypeSecret, ResourceNamesSubscribe: []string{"a", "b", "c", "d"}}, codes.ResourceExhausted},
		"a name too long":     {&discoveryv3.DeltaDiscoveryRequest{TypeUrl: TypeSecret, ResourceNamesSubscribe: []string{strings.Repeat("x", maxName+1)}}, codes.ResourceExhausted},
		"a type too long":     {&discoveryv3.DeltaDiscoveryRequest{TypeUrl: strings.Repeat("x", maxName+1)}, codes.ResourceExhausted},
		"no type on ADS":      {&discoveryv3.DeltaDiscoveryRequest{}, codes.InvalidArgument},
		"a message too large": {&discoveryv3.DeltaDiscoveryRequest{TypeUrl: TypeSecret, Node: &corev3.Node{Id: strings.Repeat("x", maxMessage)}}, codes.ResourceExhausted},
	} {
		t.Run(name, func(t *testing.T) {
			o := newOffice(t, 3)
			s := o.delta()
			if err := s.Send(c.ask); err != nil {
				t.Fatal(err)
			}
			if _, err := s.Recv(); status.Code(err) != c.code {
				t.Errorf("%v", err)
			}
		})
	}
}

func TestAStreamEndsWhenItsAttachmentDoes(t *testing.T) {
	o := newOffice(t, 0)
	c := o.delta()
	c.ask(&discoveryv3.DeltaDiscoveryRequest{TypeUrl: typeCluster})
	c.expect("")
	close(o.done)
	if _, err := c.Recv(); status.Code(err) != codes.PermissionDenied {
		t.Errorf("%v", err)
	}
}

func TestADeniedCallerReadsWhy(t *testing.T) {
	s := New(Params{Engine: distribute.New(distribute.Params{}), Authorise: func(context.Context) (*Attachment, error) {
		return nil, fault.New(fault.Denied, "uid 1000 has no session here")
	}})
	conn, err := grpc.NewClient("unix:"+serve(t, s), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	client := secretv3.NewSecretDiscoveryServiceClient(conn)
	_, unary := client.FetchSecrets(context.Background(), &discoveryv3.DiscoveryRequest{})
	stream, err := client.DeltaSecrets(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	_, streamed := stream.Recv()
	for _, err := range []error{unary, streamed} {
		if status.Code(err) != codes.PermissionDenied || !strings.Contains(err.Error(), "no session here") {
			t.Errorf("%v", err)
		}
	}
}
