package envoy

import "strings"

// Cause is why a connection was refused or failed, a label of metrics.
type Cause string

// The causes. Those that sdk/handshake has too have the same spelling and
// mean the same; docs/handshake-failures.md has all of them, with remedies.
const (
	CauseNone          Cause = ""
	CauseNoCertificate Cause = "no_certificate"
	CauseUnknownCA     Cause = "unknown_ca"
	CauseBadSignature  Cause = "bad_signature"
	CauseExpired       Cause = "expired"
	CauseNotYetValid   Cause = "not_yet_valid"
	CauseWrongSAN      Cause = "wrong_san"    // no workload's SPIFFE ID
	CauseWrongName     Cause = "wrong_name"   // genuine, and not who was called
	CauseUnauthorized  Cause = "unauthorized" // genuine, and not who may call
	CauseRevoked       Cause = "revoked"
	CauseCRL           Cause = "revocation_unknown" // a CRL is missing, stale or badly signed: everyone is refused
	CauseBadUsage      Cause = "bad_usage"
	CauseConstraint    Cause = "constraint"
	CauseBadProof      Cause = "bad_proof"
	CauseRejected      Cause = "rejected" // the peer refused ours and did not say why
	CauseVersion       Cause = "protocol_version"
	CauseCipher        Cause = "cipher_suite"
	CauseProtocol      Cause = "protocol"
	CauseTimeout       Cause = "timeout"
	CauseNotReady      Cause = "not_ready"
	CausePeerInternal  Cause = "peer_internal"
	CauseOther         Cause = "other"

	// What a proxy alone can say.
	CausePlaintext   Cause = "plaintext"   // not TLS where TLS is required
	CausePeerClosed  Cause = "peer_closed" // closed right after the handshake, unanswered
	CauseUnreachable Cause = "unreachable" // TCP did not get there
	CauseUnnamed     Cause = "unnamed"     // a destination that nothing names
)

// reasons maps Envoy's words to causes; the first that is contained decides.
// byPeer: the words are an alert, what the peer refused; else a refusal of ours.
var reasons = []struct {
	words  string
	cause  Cause
	byPeer bool
}{
	{"PEER_DID_NOT_RETURN_A_CERTIFICATE", CauseNoCertificate, false},
	{"ALERT_CERTIFICATE_REQUIRED", CauseNoCertificate, true},
	{"certificate revoked", CauseRevoked, false},
	{"ALERT_CERTIFICATE_REVOKED", CauseRevoked, true},
	{"unable to get certificate CRL", CauseCRL, false},
	{"unable to get CRL issuer", CauseCRL, false},
	{"CRL ", CauseCRL, false}, // "CRL has expired", "CRL signature failure" …
	{"Different CRL scope", CauseCRL, false},
	{"certificate has expired", CauseExpired, false},
	{"ALERT_CERTIFICATE_EXPIRED", CauseExpired, true},
	{"certificate is not yet valid", CauseNotYetValid, false},
	{"SAN match", CauseWrongName, false},
	{"verify SAN list", CauseWrongName, false},
	{"peer identity mismatches", CauseWrongName, false},
	{"ALERT_CERTIFICATE_UNKNOWN", CauseRejected, true}, // Envoy's alert for a SAN that does not match
	{"unable to get local issuer certificate", CauseUnknownCA, false},
	{"unable to get issuer certificate", CauseUnknownCA, false},
	{"self-signed certificate", CauseUnknownCA, false},
	{"self signed certificate", CauseUnknownCA, false},
	{"unable to verify the first certificate", CauseUnknownCA, false},
	{"ALERT_UNKNOWN_CA", CauseUnknownCA, true},
	{"certificate purpose", CauseBadUsage, false},
	{"invalid CA certificate", CauseBadUsage, false},
	{"invalid non-CA certificate", CauseBadUsage, false},
	{"key usage does not include", CauseBadUsage, false},
	{"ALERT_UNSUPPORTED_CERTIFICATE", CauseBadUsage, true},
	{"certificate signature failure", CauseBadSignature, false},
	{"path length constraint", CauseConstraint, false},
	{"certificate chain too long", CauseConstraint, false},
	{"subtree violation", CauseConstraint, false},
	{"unhandled critical extension", CauseConstraint, false},
	{"CERTIFICATE_VERIFY_FAILED", CauseOther, false},
	{"ALERT_BAD_CERTIFICATE", CauseRejected, true},
	{"ALERT_ACCESS_DENIED", CauseUnauthorized, true},
	{"ALERT_DECRYPT_ERROR", CauseBadProof, true},
	{"ALERT_INTERNAL_ERROR", CausePeerInternal, true},
	{"ALERT_PROTOCOL_VERSION", CauseVersion, true},
	{"ALERT_HANDSHAKE_FAILURE", CauseCipher, true},
	{"UNSUPPORTED_PROTOCOL", CauseVersion, false},
	{"NO_SHARED_CIPHER", CauseCipher, false},
	{"ClientHelloNotDetected", CausePlaintext, false},
	{"HTTP_REQUEST", CausePlaintext, false},
	{"HTTPS_PROXY_REQUEST", CausePlaintext, false},
	{"WRONG_VERSION_NUMBER", CausePlaintext, false}, // the first bytes are no TLS record
	{"transport socket timeout", CauseTimeout, false},
	{"rbac_access_denied", CauseUnauthorized, false},
	{"connect error", CauseUnreachable, false},
	{"connection timeout", CauseUnreachable, false},
	{"Secret is not supplied by SDS", CauseNotReady, false},
	{"secret is not", CauseNotReady, false},
	{"_ALERT_", CauseProtocol, true},
	{"TLS_error", CauseProtocol, false},
	{"SSL routines", CauseProtocol, false},
}

// Classify turns the reason Envoy gives for a failure into a cause, and says
// whether it was the peer that refused. The peer is who it presented itself
// as, which only inbound is known.
func Classify(direction Direction, peer, reason string) (cause Cause, byPeer bool) {
	if reason == "" {
		return CauseNone, false
	}
	for _, r := range reasons {
		if !strings.Contains(reason, r.words) {
			continue
		}
		if r.cause == CauseWrongName && direction == Inbound { // nobody was called
			if !strings.HasPrefix(peer, "spiffe://") {
				return CauseWrongSAN, false
			}
			return CauseUnauthorized, false
		}
		return r.cause, r.byPeer
	}
	return CauseOther, false
}
