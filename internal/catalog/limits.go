package catalog

// Limits bound what may be declared. A zero field takes its default.
type Limits struct {
	// EntriesPerNode bounds the WorkloadIdentities of one node; those of
	// every node ("*") count as a node of their own. Default 10,000.
	EntriesPerNode int `json:"entriesPerNode,omitempty"`
	// EntriesPerNamespace bounds the WorkloadIdentities of one namespace.
	// Default 50,000.
	EntriesPerNamespace int `json:"entriesPerNamespace,omitempty"`
	// ResourcesPerNamespace bounds every other kind in one namespace, each by
	// itself. Default 10,000.
	ResourcesPerNamespace int `json:"resourcesPerNamespace,omitempty"`
	// PoliciesPerNamespace bounds the Policies of one namespace: a node that
	// hosts an identity of it holds all of them in memory. Default 100.
	PoliciesPerNamespace int `json:"policiesPerNamespace,omitempty"`
	// DocumentBytes bounds one file of an apply. Default 1 MiB.
	DocumentBytes int `json:"documentBytes,omitempty"`
	// ResourceBytes bounds one stored resource. Default 256 KiB.
	ResourceBytes int `json:"resourceBytes,omitempty"`
	// ResourcesPerApply bounds one apply or delete, which is one transaction
	// of the store. Default 1,000.
	ResourcesPerApply int `json:"resourcesPerApply,omitempty"`
}

func (l Limits) withDefaults() Limits {
	for field, value := range map[*int]int{
		&l.EntriesPerNode: 10_000, &l.EntriesPerNamespace: 50_000, &l.ResourcesPerNamespace: 10_000, &l.PoliciesPerNamespace: 100,
		&l.DocumentBytes: 1 << 20, &l.ResourceBytes: 256 << 10, &l.ResourcesPerApply: 1_000,
	} {
		if *field <= 0 {
			*field = value
		}
	}
	return l
}
