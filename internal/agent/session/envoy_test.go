package session

import (
	"bufio"
	"context"
	"fmt"
	"net/url"
	"os"
	"strconv"
	"strings"
	"testing"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	datav3 "github.com/envoyproxy/go-control-plane/envoy/data/accesslog/v3"
	accesslogv3 "github.com/envoyproxy/go-control-plane/envoy/service/accesslog/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/legation-io/legation/internal/accesslog"
	"github.com/legation-io/legation/internal/agent/sds"
	"go.uber.org/goleak"
	"google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
)

// The test binary is also the Envoy of its sessions: who that is goes by
// process.
func TestMain(m *testing.M) {
	if socket := os.Getenv("SESSION_TEST_ENVOY"); socket != "" {
		if err := beEnvoy(socket, os.Getenv("SESSION_TEST_REFUSES")); err != nil {
			fmt.Println("end", url.QueryEscape(err.Error()))
			os.Exit(1)
		}
		os.Exit(0)
	}
	goleak.VerifyTestMain(m)
}

// beEnvoy subscribes as an Envoy does and answers everything; what it is told
// it prints: "held NAME" and "gone NAME". Each line of its input is a
// connection to be told of: "peer-id serial local remote".
func beEnvoy(socket, refuses string) error {
	conn, err := grpc.NewClient("unix://"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return err
	}
	ctx := context.Background()
	logs, err := accesslogv3.NewAccessLogServiceClient(conn).StreamAccessLogs(ctx)
	if err != nil {
		return err
	}
	stream, err := discoveryv3.NewAggregatedDiscoveryServiceClient(conn).DeltaAggregatedResources(ctx)
	if err != nil {
		return err
	}
	for _, first := range []*discoveryv3.DeltaDiscoveryRequest{
		{TypeUrl: typeListener},
		{TypeUrl: sds.TypeSecret, ResourceNamesSubscribe: []string{"default", "ROOTCA"}},
	} {
		if stream.Send(first) != nil {
			_, err := stream.Recv() // the reason
			return err
		}
	}
	go func() { // ends with the process
		for lines := bufio.NewScanner(os.Stdin); lines.Scan(); {
			if err := logs.Send(connection(strings.Fields(lines.Text()))); err != nil {
				return
			}
		}
	}()
	for {
		r, err := stream.Recv()
		if err != nil {
			return err
		}
		answer := &discoveryv3.DeltaDiscoveryRequest{TypeUrl: r.TypeUrl, ResponseNonce: r.Nonce}
		if refuses != "" && r.TypeUrl == refuses {
			answer.ErrorDetail = &status.Status{Code: 3, Message: "this Envoy does not like it"}
		}
		for _, name := range r.RemovedResources {
			fmt.Println("gone", name)
		}
		for _, res := range r.Resources {
			fmt.Println("held", res.Name)
		}
		if err := stream.Send(answer); err != nil {
			return err
		}
	}
}

func connection(fields []string) *accesslogv3.StreamAccessLogsMessage {
	address := func(s string) *corev3.Address {
		host, port, _ := strings.Cut(s, ":")
		n, _ := strconv.ParseUint(port, 10, 16)
		return &corev3.Address{Address: &corev3.Address_SocketAddress{SocketAddress: &corev3.SocketAddress{
			Address: host, PortSpecifier: &corev3.SocketAddress_PortValue{PortValue: uint32(n)}}}}
	}
	peer, serial, local, remote := fields[0], fields[1], fields[2], fields[3]
	return &accesslogv3.StreamAccessLogsMessage{
		Identifier: &accesslogv3.StreamAccessLogsMessage_Identifier{LogName: accesslog.Inbound},
		LogEntries: &accesslogv3.StreamAccessLogsMessage_TcpLogs{TcpLogs: &accesslogv3.StreamAccessLogsMessage_TCPAccessLogEntries{
			LogEntry: []*datav3.TCPAccessLogEntry{{CommonProperties: &datav3.AccessLogCommon{
				AccessLogType: datav3.AccessLogType_TcpUpstreamConnected, StreamId: remote,
				DownstreamLocalAddress: address(local), DownstreamDirectRemoteAddress: address(remote),
				CustomTags: map[string]string{accesslog.TagSerial: serial},
				TlsProperties: &datav3.TLSProperties{PeerCertificateProperties: &datav3.TLSProperties_CertificateProperties{
					SubjectAltName: []*datav3.TLSProperties_CertificateProperties_SubjectAltName{{
						San: &datav3.TLSProperties_CertificateProperties_SubjectAltName_Uri{Uri: peer}}}}},
			}}},
		}},
	}
}
