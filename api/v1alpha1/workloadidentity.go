package v1alpha1

import metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

// DefaultSPIFFEID is the template of a WorkloadIdentity that gives none.
const DefaultSPIFFEID = "spiffe://{trustDomain}/ns/{namespace}/sa/{name}"

// EveryNode as a WorkloadIdentity's node entitles every node.
const EveryNode = "*"

// WorkloadIdentity is a registration entry: which processes, on which node,
// have which SPIFFE ID, and what their SVIDs look like.
type WorkloadIdentity struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	Spec WorkloadIdentitySpec `json:"spec"`
}

// WorkloadIdentitySpec is what a person declares.
type WorkloadIdentitySpec struct {
	// SPIFFEID is the identity: a full SPIFFE ID of this trust domain, or a
	// template with the variables {trustDomain}, {namespace}, {name} (of this
	// object) and {node} (where the workload runs). Default:
	// spiffe://{trustDomain}/ns/{namespace}/sa/{name}. A path that starts
	// with /ns/<namespace>/ may be declared only in that namespace, paths
	// under /legation/ by nobody.
	SPIFFEID string `json:"spiffeID,omitempty"`

	// Node is the name of the node whose agent may hold this identity, or
	// "*" for every node.
	Node string `json:"node"`

	// Selectors say which processes on that node have the identity: a
	// process must have all of them. SPIRE's spelling: unix:uid:1000,
	// unix:user:app, unix:gid:1000, unix:group:app,
	// unix:supplementary_gid:27, unix:supplementary_group:docker,
	// unix:path:/usr/bin/app, unix:sha256:<64 hex digits>,
	// cgroup:/system.slice/app.service. At least one.
	Selectors []string `json:"selectors"`

	// TTL is the lifetime asked for X.509-SVIDs, as a Go duration such as 1h
	// or 90m; between 1s and 72h. Default: the trust domain's (24h).
	TTL string `json:"ttl,omitempty"`

	// JWTTTL is the lifetime asked for JWT-SVIDs; between 1s and 24h.
	// Default: the trust domain's (5m).
	JWTTTL string `json:"jwtTTL,omitempty"`

	// DNSNames are added to X.509-SVIDs as DNS SANs.
	DNSNames []string `json:"dnsNames,omitempty"`

	// IncludeOwnIP adds the instance's own addresses to X.509-SVIDs as IP
	// SANs; an address that changes re-issues at once.
	IncludeOwnIP bool `json:"includeOwnIP,omitempty"`

	// SDSNames are further names under which SDS serves this identity to
	// whoever has it, e.g. retail-service-cert. Unique per caller: two
	// identities that one process can have at once may not share one.
	SDSNames []string `json:"sdsNames,omitempty"`

	// Hint tells several SVIDs of one workload apart (SPIFFE Workload API,
	// hint).
	Hint string `json:"hint,omitempty"`
}
