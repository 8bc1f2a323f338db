package acmesds

import (
	"crypto/tls"
	"fmt"
	"slices"
	"strconv"
	"strings"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	secretv3 "github.com/envoyproxy/go-control-plane/envoy/service/secret/v3"
	rpcstatus "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// DeltaSecrets implements incremental SDS. A secret that is not there yet is
// waited for; none is ever removed.
func (s *Server) DeltaSecrets(stream secretv3.SecretDiscoveryService_DeltaSecretsServer) error {
	d := &delta{server: s, sent: map[string]string{}}
	return serveStream(s, stream, d.receive, func(certificates map[string]*tls.Certificate) error { return d.push(stream, certificates) })
}

// delta is what one incremental stream asked for and has.
type delta struct {
	server *Server
	sent   map[string]string // name to version; "" is wanted and not sent
	nonce  int
}

func (d *delta) receive(r *discoveryv3.DeltaDiscoveryRequest) error {
	if err := checkType(r.GetTypeUrl()); err != nil {
		return err
	}
	d.server.answered(r.GetResponseNonce(), r.GetErrorDetail(), d.names())
	for _, name := range r.GetResourceNamesUnsubscribe() {
		delete(d.sent, name)
	}
	for _, name := range r.GetResourceNamesSubscribe() {
		if _, again := d.sent[name]; !again && len(d.sent) == maxNames {
			return status.Errorf(codes.InvalidArgument, "more than %d names in one stream", maxNames)
		}
		d.sent[name] = "" // asked for again is sent again
	}
	for name, version := range r.GetInitialResourceVersions() {
		if _, wanted := d.sent[name]; wanted {
			d.sent[name] = version // it has that from an earlier stream
		}
	}
	return nil
}

func (d *delta) names() []string {
	names := make([]string, 0, len(d.sent))
	for name := range d.sent {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

func (d *delta) push(stream secretv3.SecretDiscoveryService_DeltaSecretsServer, certificates map[string]*tls.Certificate) error {
	resp := &discoveryv3.DeltaDiscoveryResponse{TypeUrl: typeSecret}
	for _, name := range d.names() {
		one, err := respond([]string{name}, certificates)
		if err != nil {
			d.server.log.Error("a certificate cannot be handed over", "error", err)
			continue
		}
		if one == nil || one.VersionInfo == d.sent[name] {
			continue
		}
		resp.Resources = append(resp.Resources, &discoveryv3.Resource{Name: name, Version: one.VersionInfo, Resource: one.Resources[0]})
	}
	if len(resp.Resources) == 0 {
		return nil
	}
	d.nonce++
	resp.Nonce = strconv.Itoa(d.nonce)
	if err := stream.Send(resp); err != nil {
		return err
	}
	for _, r := range resp.Resources {
		d.sent[r.Name] = r.Version
	}
	d.server.responses.WithLabelValues("sent").Inc()
	return nil
}

func checkType(url string) error {
	if url != "" && url != typeSecret {
		return status.Errorf(codes.InvalidArgument, "%.200q is not served here, only %s", url, typeSecret)
	}
	return nil
}

// answered counts an acknowledgement, and tells of a refusal.
func (s *Server) answered(nonce string, refusal *rpcstatus.Status, names []string) {
	switch {
	case nonce == "":
	case refusal != nil:
		s.responses.WithLabelValues("refused").Inc()
		s.log.Error("a gateway refuses its certificate and keeps the one before", "names", strings.Join(names, " "), "error", fmt.Sprintf("%.500q", refusal.GetMessage()))
	default:
		s.responses.WithLabelValues("acknowledged").Inc()
	}
}
