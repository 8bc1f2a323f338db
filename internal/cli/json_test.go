package cli_test

import (
	"bytes"
	"context"
	"encoding/json"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"unicode"

	adminv1 "github.com/legation-io/legation/api/admin/v1"
	localv1 "github.com/legation-io/legation/api/local/v1"
	nodev1 "github.com/legation-io/legation/api/node/v1"
	"github.com/legation-io/legation/internal/cli"
	"github.com/legation-io/legation/internal/commandline"
	"github.com/legation-io/legation/internal/fault"
	"google.golang.org/grpc"
)

// then is an instant that every answer uses.
const then = 1_800_000_000

func certificate() *adminv1.Certificate {
	return &adminv1.Certificate{
		Serial: "6f02a1", SpiffeId: "spiffe://example.org/ns/default/sa/web", Node: "web-1", Entry: "default/web", Instance: "session/1", Authority: "default",
		Profile: "workload", IssuedAtUnix: then, NotBeforeUnix: then - 300, NotAfterUnix: then + 3600, DnsNames: []string{"web.example.org"}, IpAddresses: []string{"192.0.2.1"},
		Sha256: "ab", LifetimeReason: "the entry asks for 1h0m0s", Revoked: true, RevokedAtUnix: then + 60, RevocationReason: "key leaked",
	}
}

func node() *adminv1.Node {
	return &adminv1.Node{Name: "web-1", SpiffeId: "spiffe://example.org/legation/agent/web-1", Method: "join_token", AttestedAtUnix: then, Serial: "01", ExpiresAtUnix: then + 3600,
		Connected: true, SinceUnix: then, Version: "v1", Subscribers: 2, Entries: 3}
}

// admin is a control plane that always says the same.
type admin struct {
	adminv1.UnimplementedAdminServer
	empty bool   // nothing there
	said  string // by a node
}

func (a *admin) Apply(_ context.Context, r *adminv1.ApplyRequest) (*adminv1.ApplyResponse, error) {
	if bytes.Contains(r.Documents[0].Content, []byte("bad")) {
		return &adminv1.ApplyResponse{Problems: []*adminv1.Problem{
			{File: "f.yaml", Line: 3, Field: "spec.selectors[0]", Message: `"unix:uid" has no value`, Fix: "write unix:uid:1000"},
			{File: "f.yaml", Line: 9, Message: "unknown field"},
		}}, nil
	}
	if bytes.Contains(r.Documents[0].Content, []byte("empty")) {
		return &adminv1.ApplyResponse{}, nil
	}
	return &adminv1.ApplyResponse{Applied: []*adminv1.Applied{{Kind: "WorkloadIdentity", Namespace: "default", Name: "web", Action: "created"}}}, nil
}

func (a *admin) Get(_ context.Context, r *adminv1.GetRequest) (*adminv1.GetResponse, error) {
	if a.empty {
		return &adminv1.GetResponse{}, nil
	}
	return &adminv1.GetResponse{Objects: []*adminv1.Object{{Kind: "WorkloadIdentity", Namespace: "default", Name: "web", Revision: 7,
		Json: []byte(`{"apiVersion":"legation.io/v1alpha1","kind":"WorkloadIdentity","metadata":{"name":"web","namespace":"default"}}`)}}}, nil
}

func (a *admin) Delete(context.Context, *adminv1.DeleteRequest) (*adminv1.DeleteResponse, error) {
	return &adminv1.DeleteResponse{Deleted: []*adminv1.Applied{{Kind: "WorkloadIdentity", Namespace: "default", Name: "web", Action: "deleted"}}}, nil
}

func (a *admin) CreateToken(_ context.Context, r *adminv1.CreateTokenRequest) (*adminv1.CreateTokenResponse, error) {
	return &adminv1.CreateTokenResponse{Token: "web-1.x.y", Node: r.Node, ExpiresAtUnix: then, BundleHash: "sha256:ab"}, nil
}

func (a *admin) ListNodes(context.Context, *adminv1.ListNodesRequest) (*adminv1.ListNodesResponse, error) {
	if a.empty {
		return &adminv1.ListNodesResponse{}, nil
	}
	n := node()
	n.Version += a.said
	return &adminv1.ListNodesResponse{Nodes: []*adminv1.Node{n}}, nil
}

func (a *admin) BanNode(context.Context, *adminv1.BanNodeRequest) (*adminv1.BanNodeResponse, error) {
	n := node()
	n.Banned, n.BanReason, n.Connected = true, "stolen", false
	return &adminv1.BanNodeResponse{Node: n, RevokedCertificates: 3}, nil
}

func (a *admin) ListCertificates(_ context.Context, r *adminv1.ListCertificatesRequest) (*adminv1.ListCertificatesResponse, error) {
	switch {
	case a.empty || r.Serial == "00":
		return &adminv1.ListCertificatesResponse{}, nil
	case r.Serial == "6":
		return &adminv1.ListCertificatesResponse{Total: 3, Certificates: []*adminv1.Certificate{certificate(), certificate(), certificate()}}, nil
	}
	return &adminv1.ListCertificatesResponse{Total: 1, Certificates: []*adminv1.Certificate{certificate()}}, nil
}

func (a *admin) Revoke(r *adminv1.RevokeRequest, stream grpc.ServerStreamingServer[adminv1.RevokeProgress]) error {
	p := &adminv1.RevokeProgress{Id: "r1", CrlNumber: 5, Serials: []string{"6f02a1"}, Acknowledged: 2, Delivered: 1, Unknown: 1,
		CommittedNanos: 1_200_000, AcknowledgedNanos: 4_500_000, ConnectionsClosed: 3, ConnectionsNanos: 600_000}
	if err := stream.Send(p); err != nil {
		return err
	}
	p.Done = true
	if r.Node != "" {
		p.Missing, p.ConnectionsFailed = []string{"web-1/envoy/1"}, 1
	}
	return stream.Send(p)
}

func (a *admin) Lift(r *adminv1.LiftRequest, stream grpc.ServerStreamingServer[adminv1.LiftProgress]) error {
	p := &adminv1.LiftProgress{Lifted: r.SpiffeId + " is issued again", Missing: []string{"web-1/envoy/1"}, CommittedNanos: 1_200_000}
	if err := stream.Send(p); err != nil {
		return err
	}
	p.Done = true
	if r.WaitMillis > 1 {
		p.Missing = nil
	}
	return stream.Send(p)
}

func (a *admin) GetBundle(context.Context, *adminv1.GetBundleRequest) (*adminv1.GetBundleResponse, error) {
	return &adminv1.GetBundleResponse{Bundle: &nodev1.Bundle{TrustDomain: "example.org", X509Roots: [][]byte{{1, 2, 3}}}, SpiffeJson: []byte(`{"keys":[]}`), Hash: "sha256:ab"}, nil
}

func (a *admin) Status(context.Context, *adminv1.StatusRequest) (*adminv1.StatusResponse, error) {
	r := &adminv1.StatusResponse{TrustDomain: "example.org", Version: "v1", StartedAtUnix: then, StoreRevision: 12}
	if a.empty {
		return r, nil
	}
	r.Authorities = []*adminv1.AuthorityStatus{{Name: "default", RootExpiresUnix: then + 1, IssuingExpiresUnix: then + 1, CrlNumber: 5, Revoked: 1}}
	r.Nodes = []*adminv1.Node{node()}
	r.CertificatesValid, r.CertificatesRevoked, r.Subscribers = 4, 1, 2
	r.Resources = map[string]uint32{"Service": 1}
	r.Renewals = []*adminv1.RenewalStatus{{Name: "system/control-plane", Issuer: "Authority.legation.io/default", Ready: true, Message: "no", NotAfterUnix: then + 3600, RenewalUnix: then + 1800, Revision: 2, FailedAttempts: 1}}
	r.Behind = []*adminv1.BehindStatus{{Node: "web-1", State: &nodev1.SubscriberState{Subscriber: "envoy/1", Type: "secret", Name: "ROOTCA", Error: "bad CRL" + a.said, SinceUnixNano: then * 1e9}}}
	r.Problems = []string{"envoy/1 on web-1 refused ROOTCA: bad CRL" + a.said}
	return r, nil
}

// owner is an agent that always says the same.
type owner struct {
	localv1.UnimplementedAgentAdminServer
	empty bool
}

func identity() *localv1.IdentityStatus {
	return &localv1.IdentityStatus{SpiffeId: "spiffe://example.org/ns/default/sa/web", Entry: "default/web", Instance: "session/1", Serial: "6f02a1", NotAfterUnix: then + 3600, RenewAtUnix: then + 1800}
}

func (o *owner) Status(context.Context, *localv1.StatusRequest) (*localv1.StatusResponse, error) {
	r := &localv1.StatusResponse{TrustDomain: "example.org", Node: "web-1", SpiffeId: "spiffe://example.org/legation/agent/web-1", Version: "v1", StartedAtUnix: then, Connected: true,
		Server: "cp:15012", SinceUnix: then, Entries: 3, CrlNumber: 5, HeartbeatUnix: then, AgentSvidExpiresUnix: then + 3600}
	if o.empty {
		return r, nil
	}
	r.Identities = []*localv1.IdentityStatus{identity()}
	r.Subscribers = []*localv1.SubscriberStatus{{Subscriber: "envoy/1", SpiffeId: "spiffe://example.org/ns/default/sa/web", Pid: 12, Exposed: "the program is root",
		States: []*nodev1.SubscriberState{{Type: "secret", Name: "ROOTCA", Error: "bad CRL"}, {Type: "secret", Name: "default", SentVersion: "2", AckedVersion: "1"}}}}
	r.Problems = []string{"envoy/1 refused ROOTCA: bad CRL"}
	return r, nil
}

func (o *owner) Why(_ context.Context, r *localv1.WhyRequest) (*localv1.WhyResponse, error) {
	if o.empty {
		return &localv1.WhyResponse{Pid: r.Pid, Summary: "Process 12 has no identity."}, nil
	}
	return &localv1.WhyResponse{Pid: r.Pid, Selectors: []string{"unix:uid:0"}, Identities: []*localv1.IdentityStatus{identity()}, Summary: "Process 12 gets it.",
		Candidates: []*nodev1.Candidate{{Entry: "default/api", SpiffeId: "spiffe://example.org/ns/default/sa/api", Node: "web-1", Missing: []string{"unix:uid:7"}, Reason: "the process lacks unix:uid:7"}}}, nil
}

func (o *owner) Connections(context.Context, *localv1.ConnectionsRequest) (*localv1.ConnectionsResponse, error) {
	if o.empty {
		return &localv1.ConnectionsResponse{}, nil
	}
	return &localv1.ConnectionsResponse{
		Connections: []*localv1.Connection{{Session: "1", SpiffeId: "spiffe://example.org/ns/default/sa/web", Direction: "inbound", Local: "192.0.2.1:15443", Remote: "192.0.2.2:4711",
			PeerId: "spiffe://example.org/ns/default/sa/api", PeerSerial: "aa", TlsVersion: "TLSv1.3", Cipher: "TLS_AES_128_GCM_SHA256", Group: "X25519MLKEM768", SinceUnixNano: then * 1e9, Cluster: "inbound"}},
		Failures: []*localv1.HandshakeFailure{{Session: "1", SpiffeId: "spiffe://example.org/ns/default/sa/web", Direction: "inbound", Remote: "192.0.2.2:4711", Cause: "plaintext", Reason: "WRONG_VERSION_NUMBER", AtUnixNano: then * 1e9}},
	}, nil
}

// legation runs one command against the two and returns what it said.
func legation(t *testing.T, empty bool, in string, args ...string) (code int, answer, talk string) {
	t.Helper()
	return legationOf(t, &admin{empty: empty}, in, args...)
}

func legationOf(t *testing.T, a *admin, in string, args ...string) (code int, answer, talk string) {
	t.Helper()
	socket := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	g := grpc.NewServer()
	adminv1.RegisterAdminServer(g, a)
	localv1.RegisterAgentAdminServer(g, &owner{empty: a.empty})
	served := make(chan error, 1)
	go func() { served <- g.Serve(l) }()
	defer func() { g.Stop(); <-served }()
	root := cli.New(nil)
	var out, errOut bytes.Buffer
	root.SetOut(&out)
	root.SetErr(&errOut)
	root.SetIn(strings.NewReader(in))
	root.SetArgs(append([]string{"--server", "unix://" + socket, "--agent", "unix://" + socket}, args...))
	code = commandline.Report(&errOut, "legation", root.ExecuteContext(t.Context()))
	return code, out.String(), errOut.String()
}

var shapes = []struct {
	name, in, args string
	code           int
}{
	{"apply", "good", "apply -f -", 0},
	{"apply-mistakes", "bad", "apply -f -", 2},
	{"apply-nothing", "empty", "apply -f -", 2},
	{"get", "", "get workloadidentities", 0},
	{"get-one", "", "get workloadidentity web", 0},
	{"delete", "", "delete workloadidentity web", 0},
	{"token-create", "", "token create --node web-1", 0},
	{"node-list", "", "node list", 0},
	{"node-show", "", "node show web-1", 0},
	{"node-ban", "", "node ban web-1", 0},
	{"cert-list", "", "cert list", 0},
	{"cert-show", "", "cert show 6F:02:A1", 0},
	{"revoke", "", "revoke spiffe://example.org/ns/default/sa/web", 0},
	{"revoke-incomplete", "", "revoke --node web-1", 1},
	{"lift", "", "lift spiffe://example.org/ns/default/sa/web", 0},
	{"lift-incomplete", "", "lift spiffe://example.org/ns/default/sa/web --wait 1ms", 1},
	{"bundle-show", "", "bundle show", 0},
	{"status", "", "status", 0},
	{"status-node", "", "status --node", 0},
	{"why", "", "why --pid 12", 0},
	{"connections", "", "connections", 0},
	{"connections-failures", "", "connections --failures", 0},
}

func TestJSONIsAContract(t *testing.T) {
	for _, tt := range shapes {
		t.Run(tt.name, func(t *testing.T) {
			code, answer, talk := legation(t, false, tt.in, append(strings.Fields(tt.args), "-o", "json")...)
			if code != tt.code {
				t.Errorf("exit %d, want %d: %s", code, tt.code, talk)
			}
			if !json.Valid([]byte(answer)) {
				t.Fatalf("not JSON: %q", answer)
			}
			golden(t, filepath.Join("testdata", "json", tt.name+".json"), answer)
		})
		t.Run(tt.name+" as YAML says the same", func(t *testing.T) {
			code, answer, _ := legation(t, false, tt.in, append(strings.Fields(tt.args), "-o", "yaml")...)
			if code != tt.code || strings.HasPrefix(answer, "{") || answer == "" {
				t.Errorf("exit %d: %q", code, answer)
			}
		})
	}
}

func TestAListWithoutMembersIsEmptyNotNull(t *testing.T) {
	for _, args := range []string{"get services", "node list", "cert list", "status", "status --node", "why --pid 12", "connections", "connections --failures"} {
		t.Run(args, func(t *testing.T) {
			code, answer, talk := legation(t, true, "", append(strings.Fields(args), "-o", "json")...)
			if code != 0 || !json.Valid([]byte(answer)) || strings.Contains(answer, "null") {
				t.Errorf("exit %d, %s%s", code, answer, talk)
			}
		})
	}
}

func TestWhatPeopleRead(t *testing.T) {
	for _, tt := range []struct {
		name, in, args string
		code           int
		empty          bool
		answer, talk   []string
	}{
		{"mistakes go to stderr, with file, line and fix", "bad", "apply -f -", 2, false, nil, []string{`f.yaml:3: spec.selectors[0]: "unix:uid" has no value; write unix:uid:1000`, "f.yaml:9: unknown field", "2 mistakes; nothing was stored"}},
		{"a dry run says that it is one", "good", "apply -f - --dry-run", 0, false, []string{"WorkloadIdentity/web created in default (dry run)"}, nil},
		{"names for scripts", "good", "apply -f - -o name", 0, false, []string{"WorkloadIdentity/web\n"}, nil},
		{"the token's next step names the trust domain", "", "token create --node web-1", 0, false, []string{"token:        web-1.x.y"}, []string{"legation-agent serve --trust-domain example.org", "--bundle-hash sha256:ab"}},
		{"an ambiguous beginning of a serial", "", "cert show 6", 2, false, nil, []string{"6 matches 3 certificates; give more digits, or: legation cert list --serial 6"}},
		{"a serial that nothing has", "", "cert show 00", 1, false, nil, []string{"no certificate has a serial that begins with 00", "try: legation cert list --expired"}},
		{"what a revocation did", "", "revoke spiffe://example.org/ns/default/sa/web", 0, false, []string{"committed      1.2 ms", "acknowledged   2", "last of them   4.5 ms", "connections    3 ended within 0.6 ms"}, []string{"revoked 1 certificate in CRL 5 after 1.2 ms"}},
		{"a revocation that somebody misses", "", "revoke --node web-1", 1, false, []string{"missing        web-1/envoy/1"}, []string{"1 subscriber missing", "see: legation status"}},
		{"two targets at once", "", "revoke --node web-1 --serial aa", 2, false, nil, []string{"name exactly one"}},
		{"a serial where an ID belongs", "", "revoke aa", 2, false, nil, []string{"legation revoke --serial aa"}},
		{"problems make status end with 1", "", "status", 1, false, []string{"problems\n  - envoy/1 on web-1 refused ROOTCA: bad CRL", "behind         1"}, []string{"1 problem, listed above"}},
		{"a healthy status", "", "status", 0, true, []string{"problems       none"}, nil},
		{"what an agent is behind with", "", "status --node", 1, false, []string{"exposed: the program is root", "behind: secret ROOTCA, refused: bad CRL", "behind: secret default"}, nil},
		{"why, with what comes near", "", "why --pid 12", 0, false, []string{"Process 12 gets it.", "default/api", "the process lacks unix:uid:7"}, nil},
		{"why nothing", "", "why", 2, false, nil, []string{"name a process (--pid)"}},
		{"no nodes: what to do", "", "node list", 0, true, nil, []string{"legation token create --node NAME"}},
		{"another format than there is", "", "status -o xml", 2, false, nil, []string{"-o xml: write table, wide, json, yaml or name"}},
		{"a format of bundles that is none", "", "bundle show --format der", 2, false, nil, []string{"--format der: write pem, spiffe or hash"}},
		{"a hash alone", "", "bundle show --format hash", 0, false, []string{"sha256:ab\n"}, nil},
		{"a file that is not there", "", "apply -f /does/not/exist", 2, false, nil, []string{"/does/not/exist: no such file"}},
		{"nothing to delete", "", "delete", 2, false, nil, []string{"legation delete KIND NAME..."}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			code, answer, talk := legation(t, tt.empty, tt.in, strings.Fields(tt.args)...)
			if code != tt.code {
				t.Errorf("exit %d, want %d", code, tt.code)
			}
			for _, w := range tt.answer {
				if !strings.Contains(answer, w) {
					t.Errorf("the answer does not say %q:\n%s", w, answer)
				}
			}
			for _, w := range tt.talk {
				if !strings.Contains(talk, w) {
					t.Errorf("the talk does not say %q:\n%s", w, talk)
				}
			}
			if tt.answer == nil && answer != "" {
				t.Errorf("an answer: %s", answer)
			}
		})
	}
}

func TestNobodyListens(t *testing.T) {
	root := cli.New(nil)
	var talk bytes.Buffer
	root.SetErr(&talk)
	root.SetArgs([]string{"status", "--server", "unix:///does/not/exist.sock"})
	if err := root.Execute(); fault.ExitCode(err) != 1 || !strings.Contains(err.Error(), "try: start it") {
		t.Errorf("%v", err)
	}
}

func TestCompletionKnowsWhatCanBeTyped(t *testing.T) {
	for _, tt := range []struct {
		typed []string
		want  string
	}{
		{[]string{""}, "revoke"},
		{[]string{"get", ""}, "workloadidentities"},
		{[]string{"status", "-o", ""}, "wide"},
		{[]string{"cert", ""}, "inspect"},
		{[]string{"bundle", "show", "--format", ""}, "spiffe"},
		{[]string{"node", "show", ""}, "web-1"},
		{[]string{"get", "workloadidentities", ""}, "web"},
		{[]string{"token", "create", "--node", "x", "--"}, "--ttl"},
		{[]string{"revoke", "--serial", "6f"}, "6f02a1"},
	} {
		_, answer, _ := legation(t, false, "", append([]string{"__complete"}, tt.typed...)...)
		if !strings.Contains(answer, tt.want) {
			t.Errorf("%q completes to %q, without %s", tt.typed, answer, tt.want)
		}
	}
}

// What a node says of itself reaches an operator's terminal.
func TestWhatANodeSaysCommandsNoTerminal(t *testing.T) {
	a := &admin{said: "\x1b[2J\x1b]0;x\a\u009b1A\u202e\r\nproblems       none\nweb-2\tready"}
	for _, args := range []string{"node list -o wide", "status", "status -o yaml"} {
		_, answer, _ := legationOf(t, a, "", strings.Fields(args)...)
		if i := strings.IndexFunc(answer, func(r rune) bool {
			return unicode.IsControl(r) && r != '\n' && r != '\t' || unicode.Is(unicode.Bidi_Control, r)
		}); i >= 0 {
			t.Errorf("%s: %q", args, answer)
		}
		for line := range strings.Lines(answer) {
			if strings.HasPrefix(line, "problems  ") || strings.HasPrefix(line, "web-2") {
				t.Errorf("%s: a line of its own: %q", args, line)
			}
		}
	}
	var got struct{ Problems []string }
	_, answer, _ := legationOf(t, a, "", "status", "-o", "json")
	if err := json.Unmarshal([]byte(answer), &got); err != nil || len(got.Problems) != 1 || !strings.HasSuffix(got.Problems[0], a.said) {
		t.Errorf("programs read another: %q, %v", got.Problems, err)
	}
}
