// Package distribute pushes named, versioned bytes to subscribers: one delta
// engine for Envoys and agents alike. It knows no kind of resource and no
// protocol; doors translate. A change costs what it touches.
//
// A resource lives in a scope. A subscriber is attached to scopes, in order,
// and sees the union; where two scopes hold the same (type, name) the first
// wins. Authorisation is the choice of scopes, made by the door that
// attached the subscriber.
package distribute

import (
	"crypto/sha256"
	"encoding/base64"
	"time"
)

// Scope names a set of resources and who may see it, e.g. "all",
// "node/web-1", "session/4f2a".
type Scope string

// Resource is immutable once given to an Engine: its bytes are shared by all
// subscribers.
type Resource struct {
	Type    string // type URL, or a kind of the trust stream
	Name    string
	Version string // content hash of Body; see VersionOf
	Body    []byte
}

// VersionOf is the content hash used for versions, equal on all replicas.
func VersionOf(body []byte) string {
	sum := sha256.Sum256(body)
	return base64.RawURLEncoding.EncodeToString(sum[:12])
}

// NewResource hashes the body once.
func NewResource(typ, name string, body []byte) *Resource {
	return &Resource{Type: typ, Name: name, Version: VersionOf(body), Body: body}
}

// Change sets (Resource) or removes (Resource nil) one name in one scope.
type Change struct {
	Scope    Scope
	Type     string
	Name     string
	Resource *Resource
}

// Request is what a subscriber asks, in the terms of incremental xDS
// (envoy.service.discovery.v3.DeltaDiscoveryRequest): the first request of a
// type without names is a wildcard; "*" subscribes to and unsubscribes from
// the wildcard.
type Request struct {
	Type        string
	Subscribe   []string
	Unsubscribe []string
	// Initial is what the subscriber already holds (name → version); read
	// only in the first request of a type.
	Initial map[string]string
	// Nonce answers the Response with that nonce; Error makes it a refusal.
	Nonce string
	Error string
}

// Response is what a subscriber is told. A name that is subscribed to by
// name and does not exist is told once, in Removed.
type Response struct {
	Type      string
	Nonce     string
	Resources []*Resource
	Removed   []string
	// Missing are those of Removed that the subscriber asked for by name.
	Missing []string
}

// Status is one line of the acknowledgement ledger.
type Status struct {
	Subscriber string
	Type       string
	Name       string
	Sent       string    // version last sent; "" is a removal
	Acked      string    // version last acknowledged
	Error      string    // why the last sent version was refused; "" is not refused
	Since      time.Time // of the last transition between sent, acked, refused
}

// Gone reports that the subscriber holds nothing of the name and has nothing
// to answer: a ledger need not keep the line.
func (s Status) Gone() bool { return s.Sent == "" && s.Acked == "" && s.Error == "" }
