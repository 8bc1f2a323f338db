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
