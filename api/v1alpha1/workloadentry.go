package v1alpha1

import metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

// IstioNetworkingAPIVersion is the apiVersion of WorkloadEntry.
const IstioNetworkingAPIVersion = "networking.istio.io/v1"

// WorkloadEntry is one endpoint that is not a Kubernetes pod, in the shape of
// Istio's networking.istio.io/v1 kind: the fields needed to say where traffic
// goes. Services of its namespace take it as an endpoint when its spec.labels
// have everything that their selector asks for.
type WorkloadEntry struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	Spec WorkloadEntrySpec `json:"spec"`
}

// WorkloadEntrySpec is what a person declares.
type WorkloadEntrySpec struct {
	// Address is the IPv4 or IPv6 address of the endpoint.
	Address string `json:"address"`

	// Ports by name of the Service's port, where this endpoint's port is not
	// the Service's targetPort.
	Ports map[string]uint32 `json:"ports,omitempty"`

	// Labels are what Services select by.
	Labels map[string]string `json:"labels,omitempty"`

	// ServiceAccount names the identity expected at the endpoint:
	// spiffe://<trust domain>/ns/<namespace>/sa/<serviceAccount>.
	ServiceAccount string `json:"serviceAccount,omitempty"`
}
