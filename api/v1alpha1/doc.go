// Package v1alpha1 is the group legation.io/v1alpha1, and the minimum of
// other projects' kinds that Legation reads and whose modules it does not
// import yet. Field comments are the manual.
package v1alpha1

// Group and version of our own kinds.
const (
	Group      = "legation.io"
	Version    = "v1alpha1"
	APIVersion = Group + "/" + Version
)

// AnnotationSPIFFEIDs, on a Service, an EndpointSlice or a WorkloadEntry,
// lists the SPIFFE IDs that its endpoints may present, separated by commas.
// What is said nearer to the endpoint wins: a WorkloadEntry's serviceAccount
// or an endpoint's targetRef, then the annotation of the WorkloadEntry or
// EndpointSlice, then that of the Service.
const AnnotationSPIFFEIDs = "legation.io/spiffe-ids"

// AnnotationIdentityHeaders, on a Service, names the ports behind which a
// program finds the caller in its HTTP headers: "true" for all ports, or names
// and numbers of spec.ports, separated by commas. The sidecar of an endpoint
// then reads HTTP (1.1 and 2, gRPC) on that port, sets spiffe-id and
// workload-id from the certificate that the caller's connection was verified
// with, and removes whatever the caller sent under these names and as
// x-forwarded-client-cert. A connection that is not HTTP is answered 400 there.
// Connections that were open before the annotation stay as they were until
// Envoy has drained them, ten minutes at most.
const AnnotationIdentityHeaders = "legation.io/identity-headers"
