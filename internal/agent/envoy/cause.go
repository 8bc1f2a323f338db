package envoy

import "strings"

// Cause is why a connection was refused or failed, a label of metrics.
type Cause string

// The causes. By* says who refused: the words are Envoy's for a refusal of
// ours, a TLS alert for the peer's.
const (
	CauseNone          Cause = ""
	CauseNoCertificate Cause = "no_certificate" // the peer presented none
	CauseUnknownCA     Cause = "unknown_ca"     // no path to a root we trust
	CauseExpired       Cause = "expired"
	CauseNotYetValid   Cause = "not_yet_valid"
	CauseWrongSAN      Cause = "wrong_san" // valid, and not who was expected
	CauseRevoked       Cause = "revoked"
	CauseCRL           Cause = "crl"             // a CRL is missing, stale or badly signed: everyone is refused
	CauseBadCert       Cause = "bad_certificate" // purpose, constraints, signature, parsing
	CauseProtocol      Cause = "protocol"        // version, cipher, malformed records
	CausePlaintext     Cause = "plaintext"       // not TLS where TLS is required
	CauseTimeout       Cause = "timeout"         // no handshake in time
	CauseUnreachable   Cause = "unreachable"     // TCP did not get there
	CauseUnnamed       Cause = "unnamed"         // a destination that nothing names
	CauseDenied        Cause = "denied"          // an authorisation rule
	CausePeerClosed    Cause = "peer_closed"     // closed right after the handshake, unanswered
	CauseNotReady      Cause = "not_ready"       // our own secrets are not there yet
	CauseOther         Cause = "other"
)

// reasons maps Envoy's words to causes; the first that is contained decides.
// The alerts (what the peer refused) carry its name for the cause.
var reasons = []struct {
	words  string
	cause  Cause
	byPeer bool
}{
	{"PEER_DID_NOT_RETURN_A_CERTIFICATE", CauseNoCertificate, false},
	{"TLSV1_ALERT_CERTIFICATE_REQUIRED", CauseNoCertificate, true},
	{"TLSV13_ALERT_CERTIFICATE_REQUIRED", CauseNoCertificate, true},
	{"certificate revoked", CauseRevoked, false},
	{"ALERT_CERTIFICATE_REVOKED", CauseRevoked, true},
	{"unable to get certificate CRL", CauseCRL, false},
	{"unable to get CRL issuer", CauseCRL, false},
	{"CRL ", CauseCRL, false}, // "CRL has expired", "CRL signature failure" …
	{"Different CRL scope", CauseCRL, false},
	{"certificate has expired", CauseExpired, false},
	{"ALERT_CERTIFICATE_EXPIRED", CauseExpired, true},
	{"certificate is not yet valid", CauseNotYetValid, false},
	{"SAN match", CauseWrongSAN, false},
	{"verify SAN list", CauseWrongSAN, false},
	{"peer identity mismatches", CauseWrongSAN, false},
	{"ALERT_CERTIFICATE_UNKNOWN", CauseWrongSAN, true}, // Envoy's alert for a SAN that does not match
	{"unable to get local issuer certificate", CauseUnknownCA, false},
	{"unable to get issuer certificate", CauseUnknownCA, false},
	{"self-signed certificate", CauseUnknownCA, false},
	{"self signed certificate", CauseUnknownCA, false},
	{"unable to verify the first certificate", CauseUnknownCA, false},
	{"ALERT_UNKNOWN_CA", CauseUnknownCA, true},
	{"CERTIFICATE_VERIFY_FAILED", CauseBadCert, false},
	{"ALERT_BAD_CERTIFICATE", CauseBadCert, true},
	{"ALERT_UNSUPPORTED_CERTIFICATE", CauseBadCert, true},
	{"ClientHelloNotDetected", CausePlaintext, false},
	{"HTTP_REQUEST", CausePlaintext, false},
	{"HTTPS_PROXY_REQUEST", CausePlaintext, false},
	{"WRONG_VERSION_NUMBER", CausePlaintext, false}, // the first bytes are no TLS record
	{"transport socket timeout", CauseTimeout, false},
	{"rbac_access_denied", CauseDenied, false},
	{"connect error", CauseUnreachable, false},
	{"connection timeout", CauseUnreachable, false},
	{"Secret is not supplied by SDS", CauseNotReady, false},
	{"secret is not", CauseNotReady, false},
	{"_ALERT_", CauseProtocol, true},
	{"TLS_error", CauseProtocol, false},
	{"SSL routines", CauseProtocol, false},
}

// Classify turns the reason Envoy gives for a failure into a cause, and says
// whether it was the peer that refused.
func Classify(reason string) (cause Cause, byPeer bool) {
	if reason == "" {
		return CauseNone, false
	}
	for _, r := range reasons {
		if strings.Contains(reason, r.words) {
			return r.cause, r.byPeer
		}
	}
	return CauseOther, false
}
