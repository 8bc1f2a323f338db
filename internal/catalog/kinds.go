package catalog

import (
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/legation-io/legation/api/v1alpha1"
)

// kind is one kind of declared resource.
type kind struct {
	name       string // as written in files
	plural     string // in store keys
	apiVersion string
	aliases    []string // further names a person may type
	make       func() metav1.Object
	// drop are top-level fields that a Kubernetes API server writes and that
	// declare nothing.
	drop  []string
	check func(*checker, metav1.Object)
}

var (
	kindIdentity = &kind{
		name: "WorkloadIdentity", plural: "workloadidentities", apiVersion: v1alpha1.APIVersion,
		aliases: []string{"workloadidentity", "identity", "identities", "wi", "entry", "entries"},
		make:    func() metav1.Object { return new(v1alpha1.WorkloadIdentity) },
		check:   func(c *checker, o metav1.Object) { c.identity(o.(*v1alpha1.WorkloadIdentity)) },
	}
	kindWorkloadEntry = &kind{
		name: "WorkloadEntry", plural: "workloadentries", apiVersion: v1alpha1.IstioNetworkingAPIVersion,
		aliases: []string{"workloadentry", "we"},
		make:    func() metav1.Object { return new(v1alpha1.WorkloadEntry) },
		drop:    []string{"status"},
		check:   func(c *checker, o metav1.Object) { c.workloadEntry(o.(*v1alpha1.WorkloadEntry)) },
	}
	kindService = &kind{
		name: "Service", plural: "services", apiVersion: "v1",
		aliases: []string{"service", "svc"},
		make:    func() metav1.Object { return new(corev1.Service) },
		drop:    []string{"status"},
		check:   func(c *checker, o metav1.Object) { c.service(o.(*corev1.Service)) },
	}
	kindEndpointSlice = &kind{
		name: "EndpointSlice", plural: "endpointslices", apiVersion: "discovery.k8s.io/v1",
		aliases: []string{"endpointslice", "eps"},
		make:    func() metav1.Object { return new(discoveryv1.EndpointSlice) },
		check:   func(c *checker, o metav1.Object) { c.endpointSlice(o.(*discoveryv1.EndpointSlice)) },
	}
	kindPolicy = &kind{
		name: "Policy", plural: "policies", apiVersion: v1alpha1.APIVersion,
		aliases: []string{"policy", "pol"},
		make:    func() metav1.Object { return new(v1alpha1.Policy) },
		check:   func(c *checker, o metav1.Object) { c.policy(o.(*v1alpha1.Policy)) },
	}
	kinds []*kind
)

func init() {
	kinds = []*kind{kindIdentity, kindWorkloadEntry, kindService, kindEndpointSlice, kindPolicy}
}

// Kinds are the names of all declared kinds.
func Kinds() []string {
	names := make([]string, len(kinds))
	for i, k := range kinds {
		names[i] = k.name
	}
	return names
}

// kindTyped finds a kind by what a person typed on a command line.
func kindTyped(typed string) (*kind, bool) {
	t := strings.ToLower(typed)
	for _, k := range kinds {
		if t == k.plural || t == strings.ToLower(k.name) || slices.Contains(k.aliases, t) {
			return k, true
		}
	}
	return nil, false
}

func kindByPlural(plural string) (*kind, bool) {
	for _, k := range kinds {
		if k.plural == plural {
			return k, true
		}
	}
	return nil, false
}
