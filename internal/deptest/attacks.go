package deptest

// An Attack is a row of docs/security.md: how a system of this kind was
// broken, and which tests would be red if this one could be. Tests that carry
// the id in their name are found by themselves.
type Attack struct {
	ID   string
	What string
	Also []string // further tests, by name
	Open string   // what is not tested or not there yet; "" nothing
}

// Attacks are the rows.
var Attacks = []Attack{
	{"A01", "a node quotes a valid entry and asks for another identity", nil, ""},
	{"A02", "SPIFFE IDs spelled so that two readers disagree", []string{"FuzzAnAcceptedIDReadsTheSameEverywhere", "TestA26NamesOfOtherTypesAndSpellingsAreNoSPIFFEID"}, ""},
	{"A03", "file descriptors leak with callers that die", nil, ""},
	{"A04", "key files readable by others", nil, ""},
	{"A05", "a join token used twice, by race, crash or restored backup", nil, ""},
	{"A06", "the proof is verified over one thing, the name read from another", nil, "one attestation method so far; the next ones need the same test"},
	{"A08", "requests made for others that reach inside the network", nil, "fetchers other than OCSP's come later"},
	{"A09", "certificates that burn CPU before anyone is authenticated", []string{"TestGuessingIsLimitedPerAddress", "TestWhatCryptoX509RefusesToday"}, ""},
	{"A10", "a call that skipped authorisation", nil, ""},
	{"A11", "a parser that panics on foreign bytes", []string{"FuzzPEM", "FuzzOpen", "FuzzValidName", "FuzzErrorLogLine", "FuzzCSR", "FuzzRawChain", "FuzzExtensions", "FuzzCRL", "FuzzOCSPResponse", "FuzzStapledResponse", "FuzzDenial", "FuzzNotPublic", "FuzzDecodeCRL", "FuzzAttestStart", "FuzzAttest", "FuzzDecodeSegment", "FuzzRequests", "FuzzVerifyJWT", "FuzzJWTClaims", "FuzzJWTBundle", "FuzzAccessLogEntry", "FuzzDecodeView", "FuzzConnection", "FuzzX509Response", "FuzzRevocationSet", "FuzzSDSResponse", "FuzzAnswer", "FuzzJWTBundles"}, ""},
	{"A12", "revoking what belongs to another tenant", nil, ""},
	{"A13", "a renewal that accepts another certificate than the current one", nil, ""},
	{"A14", "any certificate may speak as the control plane", nil, "replicas do not talk to each other yet; the class is there"},
	{"A15", "a batch that skips the check of single items", nil, ""},
	{"A16", "N names, one of them checked N times", nil, ""},
	{"A17", "signed, and not on record", []string{"TestNothingAcknowledgedIsLostToKills", "TestACertificateRecordedWhileARevocationCommitsIsRevoked"}, ""},
	{"A18", "certificate requests that ask for more than they may", []string{"TestWhatWasSignedIsChecked"}, ""},
	{"A19", "a pid that is another process a moment later", nil, ""},
	{"A20", "a socket that was handed on", []string{"TestAProgramExecutedLaterWithTheSameRightsGoesOn"}, "who is handed a connection by its owner, who stays alive, receives what the owner would"},
	{"A21", "cgroups named like somebody else's", nil, "containers come with Kubernetes"},
	{"A22", "secrets in logs, memory of others, core files", nil, ""},
	{"A23", "the Workload API without its security header", nil, ""},
	{"A24", "admin interfaces that workloads can reach", nil, ""},
	{"A25", "a resumed TLS session skips verification", nil, ""},
	{"A26", "identities in other name types, NUL, two URIs", nil, ""},
	{"A27", "certificates without the right extended key usage", []string{"TestEveryHandshakeIsToldWithItsCause"}, ""},
	{"A28", "a constrained CA that names another domain's identities", nil, "federation comes later"},
	{"A29", "a CRL that is missing, stale or forged", []string{"TestEnvoyCRLTraps", "TestEnvoySPIFFEValidatorServesTheRevoked", "TestListsThatRFC5280ForbidsAreNotUsed"}, ""},
	{"A30", "OCSP answers of the wrong responder, about another, stale or replayed", []string{"TestARevokedAnswerAnywhereWins", "TestTheRespondersOwnRevocation", "TestMustStaple"}, ""},
	{"A32", "a CRL that loses entries or goes back", nil, "OCSP comes later"},
	{"A33", "a bundle entry that is no CA anchors a chain", nil, ""},
	{"A34", "silent connections and handshakes without end", nil, ""},
	{"A35", "open connections outlive a revocation", []string{"TestARevocationMadeWhileTheAgentWasAwayEndsConnectionsWhenItIsBack", "TestEnvoyServesRotatesAndRefusesTheRevoked"}, ""},
	{"A36", "TLS 1.2, or plaintext, where it must not be", nil, "HBONE comes later"},
	{"A37", "a root that speaks for another trust domain", []string{"TestPublicRootsNeverAuthenticateAClient"}, "federation comes later"},
	{"A38", "a path spelled so that the decision is about another one", []string{"FuzzInput", "TestARealServerRefusesTheSameSpellings", "TestUnaryCallsAreDecided"}, "policies of the proxies come later"},
	{"A39", "headers repeated, joined or split until two readers disagree", []string{"FuzzIdentityHeaderNames", "FuzzBaggage"}, ""},
	{"A40", "names read as patterns, patterns without end", []string{"TestAPolicyBindsItsOwnNamespace"}, ""},
	{"A41", "two evaluators that disagree about one policy", []string{"TestPlatformPolicyAgreesWithTheSameInGo"}, "Envoy's own RBAC comes with its policies"},
	{"A42", "a valid certificate of the wrong service", nil, ""},
	{"A46", "a client that sends its own identity headers, or somebody's chain", []string{"FuzzChainHeader"}, ""},
	{"A47", "a namespace that catches another's names", nil, ""},
	{"A48", "traffic that slips past the capture", nil, "packet sockets, see below"},
	{"A49", "a proxy that asks for another's secrets", []string{"TestASessionGivesItsOpenerNothingOfOthers"}, ""},
	{"A51", "operator calls without authorisation", []string{"TestA10EveryRPCAsEveryClass"}, ""},
	{"A52", "a key that is built in", nil, ""},
	{"A54", "one poisoned object stops everything", nil, ""},
	{"A55", "tokens with the wrong algorithm, audience, key or dates", nil, ""},
	{"A56", "tokens that cost more than they may", nil, ""},
	{"A57", "ACME over http, tokens as paths, PEM that is slow to read", []string{"TestACAThatMisbehavesIsRefusedAndSaidWhy", "FuzzChallengePaths", "FuzzChain"}, ""},
	{"A58", "a policy that reaches out, mocks, loops, is forged or rolled back", []string{"FuzzBundle", "FuzzSignature", "FuzzPolicy", "TestEverythingButTrueIsADenial", "TestAPolicyThatLoopsCannotEatACore"}, ""},
	{"A63", "known holes in libraries", nil, "govulncheck is no gate yet: it needs the vulnerability database at build time"},
	{"A64", "secrets compared so that time tells", nil, ""},
}

// issue names the ids that must have a row.
var issue = []string{
	"A01", "A02", "A03", "A04", "A05", "A06", "A09", "A10", "A11", "A13", "A15", "A16", "A17", "A18", "A19", "A20", "A22", "A23", "A24", "A25", "A26", "A27",
	"A29", "A33", "A34", "A35", "A36", "A37", "A42", "A48", "A49", "A51", "A54", "A55", "A56", "A63", "A64",
}
