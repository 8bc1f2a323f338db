package main

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/legation-io/legation/sdk/mtls"
	"github.com/legation-io/legation/sdk/propagation"
	"github.com/legation-io/legation/sdk/propagation/tokens"
	"github.com/legation-io/legation/sdk/workloadapi"
)

// hop is a program that says who called, on the SDK or behind its Envoy.
type hop struct {
	source *workloadapi.Source
	config propagation.Config
}

// newHop has an identity, keys and tokens from the agent's socket. next is the
// SPIFFE ID that its calls go to.
func newHop(socket, next string) (*hop, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	c := workloadapi.Config{Addr: "unix://" + socket}
	source, err := workloadapi.Open(ctx, c)
	if err != nil {
		return nil, err
	}
	keys, err := workloadapi.OpenJWTSource(ctx, c)
	if err != nil {
		return nil, err
	}
	h := &hop{source, propagation.Config{Identity: source, Keys: keys, Tokens: tokens.New(keys.Client().Conn(), spiffeid.ID{})}}
	if next != "" {
		id, err := spiffeid.FromString(next)
		if err != nil {
			return nil, err
		}
		h.config.Audience = propagation.ToWorkload(id)
	}
	return h, nil
}

// tell answers with the chain and with what the headers say.
func tell(w io.Writer, r *http.Request) {
	fmt.Fprintf(w, "%s %s chain %s header %q %q forged %q\n", r.Host, r.Proto, propagation.FromContext(r.Context()),
		r.Header.Values("spiffe-id"), r.Header.Values("workload-id"), append(r.Header.Values("spiffe_id"), r.Header.Values("x-forwarded-client-cert")...))
}

// sdkServe answers over mTLS in process.
func sdkServe(listen, socket string) error {
	h, err := newHop(socket, "")
	if err != nil {
		return err
	}
	snapshot, _, err := h.source.Current()
	if err != nil {
		return err
	}
	handler, err := propagation.Server(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { tell(w, r) }), h.config)
	if err != nil {
		return err
	}
	l, err := mtls.Listen("tcp", listen, mtls.ServerConfig{Source: h.source, Authorize: mtls.AuthorizeMemberOf(snapshot.ID.TrustDomain()), NextProtos: mtls.HTTPProtos})
	if err != nil {
		return err
	}
	fmt.Println("serving", snapshot.ID)
	return l.Serve(&http.Server{Handler: handler})
}

// chainServe answers behind its Envoy and asks the next one, through it.
func chainServe(listen, socket, nextURL, next string) error {
	h, err := newHop(socket, next)
	if err != nil {
		return err
	}
	h.config.Mode = propagation.Sidecar
	transport, err := propagation.Transport(nil, h.config)
	if err != nil {
		return err
	}
	handler, err := propagation.Server(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		tell(w, r)
		req, err := http.NewRequestWithContext(r.Context(), "GET", nextURL, nil)
		if err != nil {
			panic(err)
		}
		resp, err := transport.RoundTrip(req)
		if err != nil {
			fmt.Fprintln(w, "next:", err)
			return
		}
		defer resp.Body.Close()
		io.Copy(w, resp.Body)
	}), h.config)
	if err != nil {
		return err
	}
	l, err := net.Listen("tcp", listen)
	if err != nil {
		return err
	}
	fmt.Println("serving behind Envoy")
	return http.Serve(l, handler)
}

// sdkGet asks over mTLS in process, with headers that lie.
func sdkGet(url, socket, id string) error {
	h, err := newHop(socket, id)
	if err != nil {
		return err
	}
	server, err := spiffeid.FromString(id)
	if err != nil {
		return err
	}
	d, err := mtls.NewDialer(mtls.ClientConfig{Source: h.source, Authorize: mtls.AuthorizeID(server)})
	if err != nil {
		return err
	}
	for _, name := range []string{"plain", "chain"} {
		var client http.RoundTripper = d.Transport()
		if name == "chain" {
			if client, err = propagation.Transport(client, h.config); err != nil {
				return err
			}
		}
		req, err := http.NewRequest("GET", url, nil)
		if err != nil {
			return err
		}
		const lie = "spiffe://example.org/ns/default/sa/admin"
		req.Header = http.Header{"Spiffe-Id": {lie}, "spiffe_id": {lie}, "Workload-Id": {lie}, "X-Forwarded-Client-Cert": {"URI=" + lie}}
		resp, err := client.RoundTrip(req)
		if err != nil {
			return err
		}
		fmt.Printf("%s: %s\n", name, resp.Status)
		io.Copy(os.Stdout, resp.Body)
		resp.Body.Close()
	}
	return nil
}
