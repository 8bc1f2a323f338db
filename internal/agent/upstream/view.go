package upstream

import (
	"context"
	"time"

	nodev1 "github.com/legation-io/legation/api/node/v1"
)

// View is what this node knows from the trust stream, or from its sealed
// cache while the control plane is away. It is immutable: a change is a new
// View that shares what did not change.
type View struct {
	// TrustDomain is the agent's own.
	TrustDomain string
	// Entries by name "<namespace>/<name>".
	Entries map[string]*nodev1.Entry
	// Policies by name "<namespace>/<name>".
	Policies map[string]*nodev1.Policy
	// Bundles by trust domain name.
	Bundles map[string]*nodev1.Bundle
	// CRLs by authority.
	CRLs map[string]*nodev1.CRL
	// Revocations by id.
	Revocations map[string]*nodev1.Revocation
	// Heartbeats by authority.
	Heartbeats map[string]*nodev1.Heartbeat
	// Synced is false until everything current has once been received (a
	// View from the cache counts).
	Synced bool
	// Connected to a replica now, and since when.
	Connected bool
	Since     time.Time
	// LastError says why the link is down.
	LastError string
}

// Signer is what the svid package needs of the link to the control plane.
type Signer interface {
	// SignX509 returns one result per item, in order. The error is for the
	// call as a whole (fault.Unavailable while no replica answers).
	SignX509(ctx context.Context, items []*nodev1.X509Item) ([]*nodev1.X509Result, error)
	SignJWT(ctx context.Context, req *nodev1.SignJWTRequest) (*nodev1.SignJWTResponse, error)
	// Explain asks which entries come near; for "why".
	Explain(ctx context.Context, req *nodev1.ExplainRequest) (*nodev1.ExplainResponse, error)
}

// Views gives the latest View and a channel closed when it is replaced.
type Views interface {
	View() (*View, <-chan struct{})
}
