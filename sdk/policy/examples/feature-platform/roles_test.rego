package legation_test

import data.legation

caller(namespace, account) := {
	"spiffe_id": sprintf("spiffe://platform.example/ns/%s/sa/%s", [namespace, account]),
	"trust_domain": "platform.example",
	"path": sprintf("/ns/%s/sa/%s", [namespace, account]),
	"namespace": namespace,
	"service_account": account,
}

asks(who, operation, type, name) := {
	"identity": who,
	"operation": operation,
	"resource": {"type": type, "name": name},
	"request": {"method": "POST", "path": "/"},
}

test_retrieval_may_predict if {
	legation.allow with input as asks(caller("retail", "retrieval"), "predict", "llm", "ranker")
}

test_retrieval_may_not_upload if {
	not legation.allow with input as asks(caller("retail", "retrieval"), "upload", "llm", "ranker")
}

test_ingestion_writes_features_only if {
	legation.allow with input as asks(caller("retail", "ingestion"), "write", "feature", "basket")
	not legation.allow with input as asks(caller("retail", "ingestion"), "write", "llm", "basket")
}

test_a_namespace_gives_roles_to_accounts_that_have_none if {
	legation.allow with input as asks(caller("serving", "anything"), "read", "feature", "basket")
	not legation.allow with input as asks(caller("serving", "anything"), "write", "feature", "basket")
	not legation.allow with input as asks(caller("serving", "gateway"), "read", "feature", "basket")
}

test_the_same_account_of_another_namespace_has_no_role if {
	not legation.allow with input as asks(caller("other", "retrieval"), "predict", "llm", "ranker")
}

test_another_trust_domain_has_no_role if {
	who := object.union(caller("retail", "retrieval"), {"trust_domain": "other.example"})
	not legation.allow with input as asks(who, "predict", "llm", "ranker")
	not legation.allow with input as asks(who, "health", "llm", "ranker")
}

test_everybody_may_ask_for_health if {
	legation.allow with input as asks(caller("other", "x"), "health", "", "")
}

test_a_locked_model_serves_nobody if {
	not legation.allow with input as asks(caller("ml", "model-admin"), "predict", "llm", "retired")
	legation.allow with input as asks(caller("ml", "model-admin"), "predict", "embedding", "retired")
}

test_an_identity_of_another_shape_has_no_role if {
	who := {"spiffe_id": "spiffe://platform.example/vm/1", "trust_domain": "platform.example", "path": "/vm/1"}
	not legation.allow with input as asks(who, "predict", "llm", "ranker")
}
