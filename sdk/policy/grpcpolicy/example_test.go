package grpcpolicy_test

import (
	"context"
	"fmt"
	"log/slog"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/grpc"

	"github.com/legation-io/legation/sdk/identity"
	"github.com/legation-io/legation/sdk/policy"
	"github.com/legation-io/legation/sdk/policy/grpcpolicy"
)

// The interceptors go behind those of sdk/grpccreds.
func Example() {
	engine, err := policy.New(context.Background(), policy.Config{Logger: slog.New(slog.DiscardHandler)}, policy.Policy{
		Name: "models", Modules: map[string]string{"models.rego": "package legation\nallow if input.operation == \"predict\""}})
	if err != nil {
		fmt.Println(err)
		return
	}
	interceptors, err := grpcpolicy.New(grpcpolicy.Config{Engine: engine, Methods: []grpcpolicy.Method{
		{FullMethod: "/inference.GRPCInferenceService/ModelInfer", Operation: "predict", Type: "llm"},
		{FullMethod: "/inference.GRPCInferenceService/*", Operation: "describe", Type: "llm"},
	}})
	if err != nil {
		fmt.Println(err)
		return
	}
	server := grpc.NewServer(grpc.ChainUnaryInterceptor(interceptors.Unary), grpc.ChainStreamInterceptor(interceptors.Stream))
	defer server.Stop()

	// What the server does with each call:
	ctx := identity.ContextWithPeer(context.Background(), identity.Peer{ID: spiffeid.RequireFromString("spiffe://prod.example/ns/shop/sa/web")})
	for _, method := range []string{"ModelInfer", "ModelMetadata"} {
		_, err := interceptors.Unary(ctx, nil, &grpc.UnaryServerInfo{FullMethod: "/inference.GRPCInferenceService/" + method},
			func(context.Context, any) (any, error) { return nil, nil })
		fmt.Println(method, err)
	}
	// Output:
	// ModelInfer <nil>
	// ModelMetadata rpc error: code = PermissionDenied desc = permission denied
}
