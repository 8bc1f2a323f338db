# Who may ask which model: namespace and service account of the caller's
# SPIFFE ID give a role, a role gives operations on types of models.
package legation

default allow := false

allow if {
	role := data.roles[input.identity.namespace][input.identity.service_account]
	input.operation in data.grants[role][input.resource.type]
}

# Everybody with an identity may ask for health and see the list.
allow if input.operation in {"health", "list"}
