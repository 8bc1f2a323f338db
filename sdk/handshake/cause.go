package handshake

import "github.com/legation-io/legation/sdk/chaincheck"

// Guide is the page that explains each cause and what to do about it.
const Guide = "https://github.com/legation-io/legation/blob/main/docs/handshake-failures.md"

// Cause is why a handshake failed, as data: a label of metrics and what
// callers switch on. There is a fixed number of them (Causes). Those that
// chaincheck.Cause has too have the same spelling.
type Cause string

// What is wrong with a certificate; Error.Whose says with whose.
const (
	NoCertificate     Cause = "no_certificate"     // none was presented
	UnknownCA         Cause = "unknown_ca"         // no path to an anchor that counts
	BadSignature      Cause = "bad_signature"      // the issuer that it names did not sign it
	Expired           Cause = "expired"            // its time is over
	NotYetValid       Cause = "not_yet_valid"      // its time has not come
	WrongSAN          Cause = "wrong_san"          // not exactly one URI that is a workload's SPIFFE ID
	WrongTrustDomain  Cause = "wrong_trust_domain" // no roots for its trust domain, or anchored by another's
	WrongName         Cause = "wrong_name"         // not for the host name or identity that was called
	Revoked           Cause = "revoked"            // taken back by CRL, OCSP or deny set
	RevocationUnknown Cause = "revocation_unknown" // whether it was taken back cannot be told
	BadUsage          Cause = "bad_usage"          // a CA's, or not made for this use
	Constraint        Cause = "constraint"         // path length, depth, name constraints, critical extensions
	Lifetime          Cause = "lifetime"           // lives longer than is accepted
	WeakKey           Cause = "weak_key"           // a key or signature algorithm that is not accepted
	Malformed         Cause = "malformed"          // not what RFC 5280 says a certificate looks like
	TooComplex        Cause = "too_complex"        // more work than an honest chain needs
	BadProof          Cause = "bad_proof"          // its holder did not prove to have the private key
	Unauthorized      Cause = "unauthorized"       // genuine, and not who may talk to us
	Rejected          Cause = "rejected"           // the peer refused ours and did not say why
)

// What the two ends do not agree on.
const (
	ProtocolVersion    Cause = "protocol_version"    // no TLS version in common
	CipherSuite        Cause = "cipher_suite"        // no suite in common, or one that is not allowed
	KeyExchange        Cause = "key_exchange"        // no group in common
	SignatureAlgorithm Cause = "signature_algorithm" // the certificate's key cannot sign what the peer reads
	ALPN               Cause = "alpn"                // no application protocol in common
	UnknownServerName  Cause = "unknown_server_name" // no certificate for the name that was asked for
	Resumption         Cause = "resumption"          // a resumed session, where each must be verified anew
	NotTLS             Cause = "not_tls"             // the peer speaks something else
	Protocol           Cause = "protocol"            // the peer broke the rules of TLS
)

// What came in between.
const (
	Closed        Cause = "closed"        // the peer closed or reset the connection
	Timeout       Cause = "timeout"       // the deadline passed
	Canceled      Cause = "canceled"      // this side gave up
	NotReady      Cause = "not_ready"     // this side has no identity (yet)
	Misconfigured Cause = "misconfigured" // this side's settings cannot work
	PeerInternal  Cause = "peer_internal" // the peer had an error of its own
	BadParams     Cause = "bad_params"    // the verifier was asked a question without an answer
	Other         Cause = "other"         // none of these; the error says what is known
)

// Causes returns every cause, in the guide's order.
func Causes() []Cause {
	return []Cause{
		NoCertificate, UnknownCA, BadSignature, Expired, NotYetValid, WrongSAN, WrongTrustDomain, WrongName, Revoked,
		RevocationUnknown, BadUsage, Constraint, Lifetime, WeakKey, Malformed, TooComplex, BadProof, Unauthorized, Rejected,
		ProtocolVersion, CipherSuite, KeyExchange, SignatureAlgorithm, ALPN, UnknownServerName, Resumption, NotTLS, Protocol,
		Closed, Timeout, Canceled, NotReady, Misconfigured, PeerInternal, BadParams, Other,
	}
}

var known = func() map[Cause]bool {
	m := map[Cause]bool{}
	for _, c := range Causes() {
		m[c] = true
	}
	return m
}()

// Link is where the guide explains the cause.
func (c Cause) Link() string { return Guide + "#" + string(c) }

// Whose certificate is at fault (Error.Whose).
const (
	Peer = "peer" // the one that the other side presented
	Own  = "own"  // the one that this side presented
)

// A Refusal is an error of a verify function (Attempt.Config) that says what
// its Err alone does not. Every field but Err may be empty.
type Refusal struct {
	// Cause is why; empty leaves it to Err, as for any other error.
	Cause Cause
	// Whose certificate is at fault: Peer, Own or empty.
	Whose string
	// Roots are the trust anchors that were tried; Error.Anchor names those that
	// matter.
	Roots chaincheck.Roots
	Err   error
}

// Error implements error.
func (r *Refusal) Error() string {
	if r.Err == nil {
		return "refused (" + string(r.Cause) + ")"
	}
	return r.Err.Error()
}

// Unwrap returns Err.
func (r *Refusal) Unwrap() error { return r.Err }
