package sds

import (
	"crypto/sha256"
	"encoding/base64"
	"maps"
	"slices"
	"sync"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/legation-io/legation/internal/distribute"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/anypb"
)

type sotwStream = grpc.BidiStreamingServer[discoveryv3.DiscoveryRequest, discoveryv3.DiscoveryResponse]

// StreamSecrets serves state-of-the-world SDS.
func (s *Server) StreamSecrets(stream sotwStream) error { return s.sotw(stream, TypeSecret) }

// StreamAggregatedResources serves state-of-the-world ADS.
func (s *Server) StreamAggregatedResources(stream sotwStream) error { return s.sotw(stream, "") }

// world is what one state-of-the-world stream knows, by type.
type world struct {
	mu    sync.Mutex // reader and writer of the stream
	types map[string]*worldType
}

type worldType struct {
	names    map[string]struct{}
	wildcard bool
	legacy   bool   // wildcard by a first request without names
	nonce    string // of the response last sent
	// full is all that the proxy has been told, for types whose responses
	// always carry everything.
	full map[string]*distribute.Resource
}

func (s *Server) sotw(stream sotwStream, implied string) error {
	w := &world{types: make(map[string]*worldType)}
	return s.run(stream.Context(), door{
		protocol: "sotw",
		window:   1,  // nonces older than the last are stale, so one is on the way at a time
		maxBytes: -1, // a part of a full state would remove the rest
		receive: func(p *peer) error {
			m, err := stream.Recv()
			if err != nil {
				return err
			}
			return p.sotw(w, m, implied)
		},
		send: func(p *peer, r *distribute.Response) error {
			p.missing(r)
			m := w.response(r)
			if m == nil {
				// The protocol cannot say "removed". Nobody will answer, so
				// it counts as settled.
				return p.sub.Request(distribute.Request{Type: r.Type, Nonce: r.Nonce})
			}
			return stream.Send(m)
		},
	})
}

func (p *peer) sotw(w *world, m *discoveryv3.DiscoveryRequest, implied string) error {
	typ, err := p.begin(m.GetNode(), m.GetTypeUrl(), implied, m.GetResourceNames())
	if err != nil {
		return err
	}
	r, ok := w.request(typ, m)
	if !ok {
		return nil
	}
	r.Error = p.refusal(typ, m.GetErrorDetail())
	return p.sub.Request(r)
}

// request turns the whole list of a request into what changed. It returns
// false for a stale one: it answers a response that has been followed by
// another, and the proxy will say its wishes again when it answers that.
func (w *world) request(typ string, m *discoveryv3.DiscoveryRequest) (distribute.Request, bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	r := distribute.Request{Type: typ}
	names := make(map[string]struct{}, len(m.GetResourceNames()))
	for _, name := range m.GetResourceNames() {
		names[name] = struct{}{}
	}
	_, star := names["*"]
	delete(names, "*")

	t := w.types[typ]
	if t == nil {
		// A nonce here is from an earlier stream.
		t = &worldType{names: names, legacy: len(m.GetResourceNames()) == 0, full: make(map[string]*distribute.Resource)}
		t.wildcard = star || t.legacy
		w.types[typ] = t
		r.Subscribe = m.GetResourceNames()
		return r, true
	}
	if n := m.GetResponseNonce(); n != "" && t.nonce != "" && n != t.nonce {
		return r, false
	}
	if t.nonce != "" {
		r.Nonce = m.GetResponseNonce()
	}
	if t.legacy && len(m.GetResourceNames()) == 0 {
		return r, true
	}
	if star && (t.legacy || !t.wildcard) {
		r.Subscribe = append(r.Subscribe, "*")
	}
	if !star && t.wildcard {
		r.Unsubscribe = append(r.Unsubscribe, "*")
	}
	for name := range names {
		if _, had := t.names[name]; !had {
			r.Subscribe = append(r.Subscribe, name)
		}
	}
	for name := range t.names {
		if _, has := names[name]; !has {
			r.Unsubscribe = append(r.Unsubscribe, name)
		}
	}
	t.names, t.wildcard, t.legacy = names, star, false
	return r, true
}

// response is what goes onto the wire, or nil where the protocol has no way
// to say it.
func (w *world) response(r *distribute.Response) *discoveryv3.DiscoveryResponse {
	w.mu.Lock()
	defer w.mu.Unlock()
	t := w.types[r.Type]
	if t == nil { // not possible: the engine answers what was asked
		return nil
	}
	resources := r.Resources
	if r.Type == typeCluster || r.Type == typeListener {
		resources = t.everything(r)
	} else if len(resources) == 0 && len(r.Removed) > 0 {
		return nil
	}
	t.nonce = r.Nonce
	return sotwResponse(r.Type, r.Nonce, resources)
}

func (t *worldType) everything(r *distribute.Response) []*distribute.Resource {
	for _, x := range r.Resources {
		t.full[x.Name] = x
	}
	for _, name := range r.Removed {
		delete(t.full, name)
	}
	maps.DeleteFunc(t.full, func(name string, _ *distribute.Resource) bool {
		_, named := t.names[name]
		return !named && !t.wildcard
	})
	out := make([]*distribute.Resource, 0, len(t.full))
	for _, name := range slices.Sorted(maps.Keys(t.full)) {
		out = append(out, t.full[name])
	}
	return out
}

// sotwResponse's version is a hash over names and versions: equal on all
// replicas for equal content.
func sotwResponse(typ, nonce string, resources []*distribute.Resource) *discoveryv3.DiscoveryResponse {
	m := &discoveryv3.DiscoveryResponse{TypeUrl: typ, Nonce: nonce, Resources: make([]*anypb.Any, len(resources))}
	h := sha256.New()
	for i, x := range resources {
		m.Resources[i] = &anypb.Any{TypeUrl: x.Type, Value: x.Body}
		h.Write([]byte(x.Name + "\x00" + x.Version + "\x00"))
	}
	m.VersionInfo = base64.RawURLEncoding.EncodeToString(h.Sum(nil)[:12])
	return m
}
