# Who may do what on the feature platform: namespace and service account give
# roles, roles give operations on types of resource.
package legation

default allow := false

# A role may do this to that, unless it is locked for everybody.
allow if {
	input.identity.trust_domain == data.platform.trust_domain
	some role in roles
	input.operation in data.platform.grants[role][input.resource.type]
	not data.platform.locked[input.resource.type][input.resource.name]
}

# Everybody with an identity of this trust domain may ask for health.
allow if {
	input.operation == "health"
	input.identity.trust_domain == data.platform.trust_domain
}

# The roles of the caller's service account; where it has none of its own,
# those of its whole namespace.
roles := own if {
	own := data.platform.accounts[input.identity.namespace][input.identity.service_account]
} else := data.platform.namespaces[input.identity.namespace]
