package compile

import (
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	nodev1 "github.com/legation-io/legation/api/node/v1"
	"github.com/legation-io/legation/internal/envoytest"
)

// The test binary is its own helper inside of network namespaces: "serve
// ADDRESS" echoes, "ask ADDRESS" prints what comes back.
const helperEnv = "COMPILE_TEST_HELPER"

func TestMain(m *testing.M) {
	if verb, address, ok := strings.Cut(os.Getenv(helperEnv), " "); ok {
		helper(verb, address)
		return
	}
	goleak.VerifyTestMain(m)
}

func helper(verb, address string) {
	if verb == "ask" {
		answer, err := ask(net.DialTimeout("tcp", address, time.Minute))
		fmt.Print(answer)
		if err != nil {
			fmt.Print("refused")
		}
		return
	}
	l, err := net.Listen("tcp", address)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	fmt.Println("listening")
	serveEcho(l)
}

// serveEcho answers until the listener is closed, and every connection with it.
func serveEcho(l net.Listener) {
	var wg sync.WaitGroup
	defer wg.Wait()
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		_ = c.SetDeadline(time.Now().Add(time.Minute))
		wg.Go(func() {
			defer c.Close()
			_, _ = io.Copy(c, c)
		})
	}
}

func ip(t *testing.T, args string) {
	t.Helper()
	if out, err := exec.Command("ip", strings.Fields(args)...).CombinedOutput(); err != nil {
		t.Fatalf("ip %s: %v: %s(this test needs root and network namespaces)", args, err, out)
	}
}

// namespaces makes a client's and a server's host with a cable between them;
// they go with the test.
func namespaces(t *testing.T) (client, server string) {
	t.Helper()
	client, server = fmt.Sprintf("lcc%d", os.Getpid()), fmt.Sprintf("lcs%d", os.Getpid())
	for _, ns := range []string{client, server} {
		ip(t, "netns add "+ns)
		t.Cleanup(func() { _ = exec.Command("ip", "netns", "del", ns).Run() })
		ip(t, "-n "+ns+" link set lo up")
	}
	ip(t, "link add "+client+" netns "+client+" type veth peer name "+server+" netns "+server)
	for n, ns := range []string{server, client} {
		ip(t, fmt.Sprintf("-n %s addr add 10.0.0.%d/24 dev %s", ns, n+1, ns))
		ip(t, fmt.Sprintf("-n %s addr add fd00::%d/64 dev %s nodad", ns, n+1, ns))
		ip(t, "-n "+ns+" link set "+ns+" up")
	}
	ip(t, "-n "+client+" route add default via 10.0.0.1")
	ip(t, "-n "+client+" -6 route add default via fd00::1")
	return client, server
}

func redirect(t *testing.T, ns, hook, port string) {
	t.Helper()
	rules := "table inet t {\n chain c {\n type nat hook " + hook + " priority -100;\n meta mark 1337 return\n fib daddr type local meta oif lo return\n" +
		" meta l4proto tcp redirect to :" + port + "\n }\n}\n"
	if hook == "prerouting" {
		rules = strings.Replace(rules, " fib daddr type local meta oif lo return\n", "", 1)
	}
	nft := exec.Command("ip", "netns", "exec", ns, "nft", "-f", "-")
	nft.Stdin = strings.NewReader(rules)
	if out, err := nft.CombinedOutput(); err != nil {
		t.Fatalf("nft: %v: %s", err, out)
	}
}

func inside(t *testing.T, ns, does string) *exec.Cmd {
	c := exec.CommandContext(t.Context(), "ip", "netns", "exec", ns, os.Args[0])

	c.Env = append(os.Environ(), helperEnv+"="+does, "GORACE=atexit_sleep_ms=0")
	return c
}

func TestCapturedConnectionsReachTheirDestinationOrNothing(t *testing.T) {
	client, server := namespaces(t)
	for _, address := range []string{"127.0.0.1:8080", "10.0.0.1:9999"} { // 9999: running, and declared nowhere
		serve := inside(t, server, "serve "+address)
		out, err := serve.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := serve.Start(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = serve.Process.Kill(); _ = serve.Wait() })
		if _, err := out.Read(make([]byte, 16)); err != nil {
			t.Fatal(err)
		}
	}
	s := apply(t, open(t), `
apiVersion: legation.io/v1alpha1
kind: WorkloadIdentity
metadata: {name: web, namespace: shop}
spec: {node: "*", selectors: ["unix:uid:1000"]}
---
apiVersion: legation.io/v1alpha1
kind: WorkloadIdentity
metadata: {name: api, namespace: shop}
spec: {node: "*", selectors: ["unix:uid:1001"]}
---
apiVersion: v1
kind: Service
metadata: {name: api, namespace: shop}
spec: {clusterIPs: [10.96.0.10, "fd00:96::10"], selector: {app: api}, ports: [{port: 80, targetPort: 8080}]}
---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {name: api-4, namespace: shop}
spec: {address: 10.0.0.1, labels: {app: api}, serviceAccount: api}
---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {name: api-6, namespace: shop}
spec: {address: "fd00::1", labels: {app: api}, serviceAccount: api}
`)
	ca := newAuthority(t)
	start := func(ns, name string) *envoytest.Envoy {
		all, err := Proxy(s, &nodev1.Subject{Id: name, Entry: "shop/" + name, Mode: nodev1.Mode_MODE_CAPTURE}, testOptions)
		if err != nil {
			t.Fatal(err)
		}
		return envoytest.Start(t, string(static(t, all, ca.secrets(t, "spiffe://example.org/ns/shop/sa/"+name))),
			envoytest.Options{Wrap: []string{"ip", "netns", "exec", ns}, Args: []string{"--service-node", name, "--service-cluster", "t", "--base-id", fmt.Sprint(os.Getpid()%10000*2 + len(name)%2)}})
	}
	web, api := start(client, "web"), start(server, "api")
	redirect(t, client, "output", "15001")
	redirect(t, server, "prerouting", "15006")
	for name, test := range map[string]struct {
		to string
		ok bool
	}{
		"a virtual address":                  {"10.96.0.10:80", true},
		"a virtual address of IPv6":          {"[fd00:96::10]:80", true},
		"an endpoint's address":              {"10.0.0.1:8080", true},
		"an endpoint's address of IPv6":      {"[fd00::1]:8080", true},
		"a port that nothing names":          {"10.0.0.1:9999", false},
		"a virtual address, undeclared port": {"10.96.0.10:81", false},
		"an address that nothing names":      {"192.0.2.1:80", false},
		"the proxy's own port":               {"127.0.0.1:15001", false},
		"the peer's inbound port":            {"10.0.0.1:15006", false},
	} {
		t.Run(name, func(t *testing.T) {
			out, err := inside(t, client, "ask "+test.to).Output()
			if got := string(out) == "hello\n"; err != nil || got != test.ok {
				t.Errorf("%q %v\n%s\n%s", out, err, web.Log(), api.Log())
			}
		})
	}
	if n, _ := web.Stat("listener.outbound.no_filter_chain_match"); n < 4 {
		t.Errorf("%d refusals counted, want at least 4", n)
	}
	if n, _ := web.Stat("cluster.direct|80|api.shop.upstream_cx_connect_fail"); n != 0 {
		t.Errorf("%d direct connections failed", n)
	}
	// Plaintext from outside, past the client's proxy, is refused and counted.
	if out, _ := exec.Command("ip", "netns", "exec", client, "nft", "flush", "ruleset").CombinedOutput(); len(out) > 0 {
		t.Fatalf("%s", out)
	}
	if out, _ := inside(t, client, "ask 10.0.0.1:8080").Output(); string(out) == "hello\n" {
		t.Error("plaintext passed")
	}
	if n, _ := api.Stat("listener.inbound.ssl.connection_error"); n == 0 {
		t.Error("plaintext is not counted")
	}
}
