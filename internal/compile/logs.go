package compile

import (
	accesslogv3 "github.com/envoyproxy/go-control-plane/envoy/config/accesslog/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	grpclogv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/access_loggers/grpc/v3"
	tracingv3 "github.com/envoyproxy/go-control-plane/envoy/type/tracing/v3"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/legation-io/legation/internal/accesslog"
)

// logTo writes each entry at once to the agent's access log service, which
// must know who is on a connection before it is used.
func logTo(name string) *accesslogv3.AccessLog {
	common := &grpclogv3.CommonGrpcAccessLogConfig{
		LogName:             name,
		TransportApiVersion: corev3.ApiVersion_V3,
		GrpcService: &corev3.GrpcService{TargetSpecifier: &corev3.GrpcService_EnvoyGrpc_{
			EnvoyGrpc: &corev3.GrpcService_EnvoyGrpc{ClusterName: accesslog.Cluster}}},
		BufferSizeBytes: wrapperspb.UInt32(0),
	}
	for _, tag := range accesslog.Tags(name) {
		common.CustomTags = append(common.CustomTags, &tracingv3.CustomTag{Tag: tag.Name, Type: &tracingv3.CustomTag_Value{Value: tag.Format}})
	}
	return &accesslogv3.AccessLog{
		Name:       "envoy.access_loggers.tcp_grpc",
		ConfigType: &accesslogv3.AccessLog_TypedConfig{TypedConfig: pack(&grpclogv3.TcpGrpcAccessLogConfig{CommonConfig: common})},
	}
}

// unmatched logs the connections that no filter chain takes: captured, and
// refused because nothing names their destination.
func unmatched(name string) *accesslogv3.AccessLog {
	log := logTo(name)
	log.Filter = &accesslogv3.AccessLogFilter{FilterSpecifier: &accesslogv3.AccessLogFilter_ResponseFlagFilter{
		ResponseFlagFilter: &accesslogv3.ResponseFlagFilter{Flags: []string{"NR"}}}}
	return log
}
