package v1alpha1

import (
	"encoding/json"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// Policy is an authorisation policy in Rego for programs that use the SDK: the
// agents of nodes that host an identity it binds hand it to those programs,
// which decide by it. A program with several must be allowed by all of them,
// one with none denies everything.
type Policy struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	Spec PolicySpec `json:"spec"`
}

// PolicySpec is what a person declares.
type PolicySpec struct {
	// Subjects are the identities that decide by this policy: SPIFFE IDs of
	// this trust domain in which whole segments may be "*", and the last one
	// "**". None is every identity of the policy's namespace. A policy binds
	// identities of its own namespace only, unless it is declared in the
	// namespace legation-system: then those of every namespace.
	Subjects []string `json:"subjects,omitempty"`

	// Modules are Rego modules by file name, such as allow.rego. At least one.
	Modules map[string]string `json:"modules"`

	// RegoVersion of the modules: v1 (the default) or v0.
	RegoVersion string `json:"regoVersion,omitempty"`

	// Data is the document "data": an object.
	Data json.RawMessage `json:"data,omitempty"`

	// Query is what decides; default data.legation.allow. Everything but true
	// is a denial.
	Query string `json:"query,omitempty"`
}
