// Package deptest holds the map of docs/architecture.md: which folder is what,
// and who may import whom. The tests beside it compare it with the code; it is
// no part of any program.
package deptest

// Module is the root module's path.
const Module = "github.com/legation-io/legation"

// Layer is a place on the map. Imports point down: to a smaller Layer, or to
// the same one unless that is Door.
type Layer int

const (
	// Test code helps tests; nothing else imports it.
	Test Layer = iota - 1
	// Vocabulary lies under everything.
	Vocabulary
	// Outlet calls out: disk, kernel, network, Envoy.
	Outlet
	// Decider rules, and does not know which protocol asked.
	Decider
	// Door translates a protocol and does not decide.
	Door
	// Assembly names backends and puts the parts together.
	Assembly
	// Command is a main package.
	Command
)

func (l Layer) String() string {
	switch l {
	case Test:
		return "test"
	case Vocabulary:
		return "vocabulary"
	case Outlet:
		return "outlet"
	case Decider:
		return "decider"
	case Door:
		return "door"
	case Assembly:
		return "assembly"
	}
	return "command"
}

// A Folder is one row: a package, and all below it that have no row.
type Folder struct {
	Path  string // below the module
	Layer Layer
	// What it answers, in one line.
	What string
	// May lists what it may import of ours besides vocabulary: folders, and
	// "*" for whatever its layer may.
	May []string
}

// An Exception is one import that points the wrong way, and why it stays.
type Exception struct{ From, To, Why string }

// Folders is the map.
var Folders = []Folder{
	{"cmd/legation", Command, "flags to config to Run of the control plane, and the command line", []string{"internal/server", "internal/cli"}},
	{"cmd/legation-agent", Command, "the same for the agent", []string{"internal/agent", "internal/agent/run"}},

	{"internal/server", Assembly, "the control plane put together; its configuration", []string{"*"}},
	{"internal/agent", Assembly, "the agent put together; its configuration and its owner's door", []string{
		"internal/agent/workloadapi", "internal/agent/sds", "internal/agent/session", "internal/agent/run", "internal/agent/svid", "internal/agent/upstream",
		"internal/agent/envoy", "internal/agent/capture", "internal/attest/node", "internal/attest/workload", "internal/callers", "internal/distribute"}},
	{"internal/agent/run", Assembly, "legation-agent run: the parent of a program and its Envoy; a client of the agent", []string{"internal/agent/envoy", "internal/agent/capture"}},
	{"internal/cli", Assembly, "one file per noun or verb; a client of api, never of the server's packages", nil},

	{"internal/server/admin", Door, "people and CI: the admin API", []string{
		"internal/catalog", "internal/ca", "internal/ledger", "internal/acks", "internal/attest/node/jointoken", "internal/attest/node/registry", "internal/callers", "internal/distribute", "internal/store"}},
	{"internal/server/node", Door, "agents: attest, sign, subscribe, report", []string{
		"internal/attest/node", "internal/attest/node/registry", "internal/ca", "internal/acks", "internal/distribute", "internal/objects"}},
	{"internal/agent/workloadapi", Door, "the SPIFFE Workload API, and what the agent's socket offers beyond it", []string{"internal/agent/svid", "internal/agent/upstream", "internal/attest/workload"}},
	{"internal/agent/sds", Door, "SDS and ADS for Envoys", []string{"internal/agent/svid", "internal/distribute"}},
	{"internal/agent/session", Door, "a program started under attestation, with its Envoy", []string{
		"internal/agent/svid", "internal/agent/upstream", "internal/agent/envoy", "internal/attest/workload", "internal/distribute"}},

	{"internal/catalog", Decider, "declared resources: validated, indexed, immutable snapshots and what changed", []string{"internal/store"}},
	{"internal/compile", Decider, "(snapshot, subject) to bytes; pure", []string{"internal/catalog", "internal/distribute"}},
	{"internal/distribute", Decider, "one delta engine: subscribe, share bytes, track ACK and NACK; knows no kind of resource", nil},
	{"internal/acks", Decider, "who behind the agents holds what, by class", nil},
	{"internal/ca", Decider, "the authority: sign, revoke, CRL, heartbeat, bundle", []string{"internal/ca/custody", "internal/ledger", "internal/store"}},
	{"internal/objects", Decider, "small values that the replicas of one identity share: keys, sizes, quotas, who was first", []string{"internal/store"}},
	{"internal/attest/node", Decider, "how a node proves itself: both sides of it", nil},
	{"internal/attest/node/jointoken", Decider, "join tokens: made, judged, spent once", []string{"internal/attest/node", "internal/store"}},
	{"internal/attest/node/registry", Decider, "which nodes there are, and which are banned", []string{"internal/attest/node", "internal/store"}},
	{"internal/attest/workload", Decider, "a local caller, held by pidfd, to selectors", nil},
	{"internal/callers", Decider, "which caller class and role may call which RPC", nil},
	{"internal/agent/svid", Decider, "keys and SVIDs of this node: made, renewed, cached, handed to whoever waits", []string{"internal/agent/upstream", "internal/attest/workload"}},

	{"internal/ca/custody", Outlet, "where an authority's key lives", nil},
	{"internal/ca/custody/file", Outlet, "sealed in the store under a key file", []string{"internal/ca/custody", "internal/store"}},
	{"internal/ledger", Outlet, "the issuance journal and the inventory read from it", []string{"internal/store"}},
	{"internal/store", Outlet, "revisions, transactions, watch: the interface, keys, kinds, format", nil},
	{"internal/store/etcd", Outlet, "embedded etcd in this process", []string{"internal/store"}},
	{"internal/store/memory", Outlet, "the same semantics in memory", []string{"internal/store"}},
	{"internal/agent/upstream", Outlet, "the link to the control plane, and what it knew last", nil},
	{"internal/agent/envoy", Outlet, "one Envoy process, its admin socket, its access log, its connections", nil},
	{"internal/agent/capture", Outlet, "nftables rules that send a namespace's TCP to its Envoy", nil},

	{"api", Vocabulary, "protos with generated Go beside them; the kinds of legation.io", nil},
	{"internal/accesslog", Vocabulary, "what compile and agent/envoy agree on about Envoy's access log", nil},
	{"internal/binding", Vocabulary, "which identities a declared policy is about; both programs agree", nil},
	{"internal/clock", Vocabulary, "time as an input", nil},
	{"internal/commandline", Vocabulary, "what both command lines share: strictness, exit codes", nil},
	{"internal/configfile", Vocabulary, "one strict YAML file, all mistakes by the key typed", nil},
	{"internal/cutoff", Vocabulary, "ends what a listener accepted, all at once", nil},
	{"internal/durable", Vocabulary, "the file layer, and one that fails on purpose", nil},
	{"internal/fault", Vocabulary, "the few kinds of error that a caller can act on", nil},
	{"internal/latest", Vocabulary, "a value replaced whole, with a channel closed at the next", nil},
	{"internal/limit", Vocabulary, "token buckets and slots per key, in bounded memory", nil},
	{"internal/sealed", Vocabulary, "a sealed box on disk", nil},
	{"internal/telemetry", Vocabulary, "logs, metrics, health", nil},
	{"internal/unixsocket", Vocabulary, "listen on a Unix socket with a mode, refuse one in use", nil},
	{"internal/version", Vocabulary, "what this build is called", nil},
	{"sdk", Vocabulary, "a Go module of its own; imports nothing of this one", nil},

	{"internal/memnet", Test, "a network in memory", nil},
	{"internal/freeport", Test, "TCP ports for what a test starts", nil},
	{"internal/envoytest", Test, "a real Envoy in a test", nil},
	{"internal/pythontest", Test, "packages for real Python clients in a test", nil},
	{"internal/agent/envoy/envoytest", Test, "the same with its access log", nil},
	{"internal/server/node/nodetest", Test, "one replica over real TLS", []string{"*"}},
	{"internal/store/storetest", Test, "the suite that every store passes", []string{"internal/store"}},
	{"internal/ca/custody/custodytest", Test, "the suite that every custody passes", []string{"internal/ca/custody"}},
	{"internal/deptest", Test, "this map and its tests", nil},
	{"bench", Test, "make bench", []string{"*"}},
	{"examples", Test, "worked examples; make demo", nil},
}

// Exceptions are the imports that point up or sideways.
var Exceptions = []Exception{
	{"internal/agent/session", "internal/agent/sds", "a session owns the private SDS socket of its Envoy: it opens, fills and closes that door"},
	{"internal/agent/upstream", "internal/distribute", "the link hands on what it received as the engine's own Resource and Change, so that bytes and hashes are never converted"},
	{"internal/agent/upstream", "internal/attest/node", "the node's side of attestation is a conversation on this link; Prover is its interface"},
}
