package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/legation-io/legation/internal/freeport"
)

// node is a machine with an agent: here, a second and third agent process.
type node struct {
	name, socket, admin, metrics string
	proc                         *process
}

// service is one program of the platform.
type service struct {
	name     string
	node     *node
	calls    []string // services it connects to
	path     string   // executable that attestation sees
	uid      int      // whom it runs as
	argv     func(peers map[string]string, listen string) []string
	proc     *process
	outbound map[string]int // explicit mode: local port of each destination
}

func (d *demo) startControlPlane(ctx context.Context) error {
	port, err := freeport.Find()
	if err != nil {
		return err
	}
	d.server = filepath.Join(d.work, "admin.sock")
	p, err := d.start("control-plane", []string{d.tool("legation"), "server", "--trust-domain", trustDomain,
		"--data-dir", filepath.Join(d.work, "control-plane"), "--listen", fmt.Sprintf("127.0.0.1:%d", port),
		"--metrics", "", "--admin-socket", d.server})
	if err != nil {
		return err
	}
	for i, name := range []string{"node-1", "node-2"} {
		metrics, err := freeport.Find()
		if err != nil {
			return err
		}
		d.nodes = append(d.nodes, &node{
			name: name, socket: filepath.Join(d.work, fmt.Sprintf("n%d.sock", i+1)),
			admin: filepath.Join(d.work, fmt.Sprintf("n%d-admin.sock", i+1)), metrics: fmt.Sprintf("127.0.0.1:%d", metrics),
		})
	}
	err = until(ctx, 20*time.Second, "the control plane answers", func() error {
		if err := p.alive(); err != nil {
			return finalError{err}
		}
		_, err := os.Stat(d.server)
		return err
	})
	if err != nil {
		return err
	}
	for _, n := range d.nodes {
		n.proc, err = d.agentProcess(ctx, n, fmt.Sprintf("127.0.0.1:%d", port))
		if err != nil {
			return err
		}
	}
	return nil
}

func (d *demo) agentProcess(ctx context.Context, n *node, server string) (*process, error) {
	var token struct{ Token, BundleHash string }
	if err := d.legation(ctx, &token, "token", "create", "--node", n.name); err != nil {
		return nil, err
	}
	file := filepath.Join(d.work, n.name+".token")
	if err := os.WriteFile(file, []byte(token.Token), 0o600); err != nil {
		return nil, err
	}
	return d.start(n.name, []string{d.tool("legation-agent"), "serve", "--trust-domain", trustDomain, "--server", server,
		"--data-dir", filepath.Join(d.work, n.name), "--socket", n.socket, "--admin-socket", n.admin,
		"--join-token-file", file, "--bundle-hash", token.BundleHash, "--metrics", n.metrics})
}

func (d *demo) startAgents(ctx context.Context) error {
	for _, n := range d.nodes {
		err := until(ctx, 20*time.Second, n.name+" joins", func() error {
			if err := n.proc.alive(); err != nil {
				return finalError{err}
			}
			var st struct {
				Connected bool
				LastError string
			}
			if err := d.agent(ctx, n, &st, "status", "--node"); err != nil {
				return err
			}
			if !st.Connected {
				return errors.New(st.LastError)
			}
			return nil
		})
		if err != nil {
			return err
		}
		d.out.say("  %s attested by join token", n.name)
	}
	return nil
}

// plan says which program runs where and calls whom.
func (d *demo) plan(ctx context.Context) error {
	if err := d.share(); err != nil {
		return err
	}
	python, err := d.pythons("ingestion", "model")
	if err != nil {
		return err
	}
	retrievalPath, retrieval, err := d.retrieval(ctx)
	if err != nil {
		return err
	}
	store := d.program("featurestore")
	url := func(address string) string { return "http://" + address }
	d.services = []*service{
		{name: "featurestore", node: d.nodes[1], path: store, argv: func(_ map[string]string, listen string) []string {
			return []string{store, "-listen", listen}
		}},
		{name: "retrieval", node: d.nodes[1], calls: []string{"featurestore"}, path: retrievalPath, argv: func(peers map[string]string, listen string) []string {
			return append(retrieval, listen, url(peers["featurestore"]))
		}},
		{name: "model", node: d.nodes[0], calls: []string{"retrieval"}, path: python["model"], argv: func(peers map[string]string, listen string) []string {
			return []string{python["model"], d.program("model.py"), "--listen", listen, "--retrieval", url(peers["retrieval"])}
		}},
		{name: "ingestion", node: d.nodes[0], calls: []string{"featurestore", "model", "decoy"}, path: python["ingestion"], argv: func(peers map[string]string, listen string) []string {
			return []string{python["ingestion"], d.program("ingestion.py"), "--listen", listen,
				"--featurestore", url(peers["featurestore"]), "--model", url(peers["model"])}
		}},
	}
	for i, s := range d.services {
		s.uid = os.Geteuid()
		if !d.explicit { // root's programs could leave the capture; these cannot
			s.uid = firstUID + i
		}
	}
	return nil
}

// firstUID is the first service's user where this runs as root.
const firstUID = 65001

// share copies the programs to where their users find them, whatever the
// modes of the checkout are.
func (d *demo) share() error {
	if err := os.Mkdir(filepath.Join(d.work, "programs"), 0o755); err != nil {
		return err
	}
	for _, from := range []string{
		d.tool("featurestore"), d.tool("retrieval"), filepath.Join(d.source, "retrieval/Retrieval.java"),
		filepath.Join(d.source, "model/model.py"), filepath.Join(d.source, "ingestion/ingestion.py"),
	} {
		raw, err := os.ReadFile(from)
		if err != nil {
			return err
		}
		to := d.program(filepath.Base(from))
		if err := os.WriteFile(to, raw, 0o755); err != nil {
			return err
		}
	}
	return readable(filepath.Join(d.work, "programs"))
}

func (d *demo) program(name string) string { return filepath.Join(d.work, "programs", name) }

// readable opens a folder to everybody, for reading, whatever the umask was.
func readable(dir string) error {
	return filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil || e.Type()&fs.ModeSymlink != 0 {
			return err
		}
		info, err := e.Info()
		if err != nil {
			return err
		}
		mode := info.Mode().Perm() | 0o444
		if mode&0o100 != 0 {
			mode |= 0o111
		}
		return os.Chmod(path, mode)
	})
}

// pythons gives each service an interpreter at a path of its own (a virtual
// environment with nothing installed), so that attestation by path tells
// them apart.
func (d *demo) pythons(names ...string) (map[string]string, error) {
	base := "/usr/bin/python3"
	if _, err := os.Stat(base); err != nil {
		if base, err = exec.LookPath("python3"); err != nil {
			return nil, errors.New("python3 is needed for the ingestion and model programs")
		}
	}
	paths := map[string]string{}
	for _, name := range names {
		dir := filepath.Join(d.work, "python-"+name)
		if err := command(base, "-m", "venv", "--copies", "--without-pip", dir); err != nil {
			return nil, err
		}
		if err := readable(dir); err != nil {
			return nil, err
		}
		real, err := filepath.EvalSymlinks(filepath.Join(dir, "bin", "python3"))
		if err != nil {
			return nil, err
		}
		paths[name] = real
	}
	return paths, nil
}

// retrieval is Java where there is a JDK, else Go.
func (d *demo) retrieval(ctx context.Context) (path string, argv []string, err error) {
	if java, err := exec.LookPath("java"); err == nil {
		if real, err := filepath.EvalSymlinks(java); err == nil {
			if command(real, "--list-modules") == nil && exec.Command(filepath.Join(filepath.Dir(real), "javac"), "-version").Run() == nil {
				d.out.say("  retrieval runs in Java (%s)", real)
				return real, []string{real, "-XX:TieredStopAtLevel=1", d.program("Retrieval.java")}, nil
			}
		}
	}
	if ctx.Err() != nil { // which ended Java's answer, too
		return "", nil, ctx.Err()
	}
	d.out.say("  no JDK on this machine: retrieval runs in Go")
	return d.program("retrieval"), []string{d.program("retrieval")}, nil
}

// resources are the declared identities and services, as YAML.
func (d *demo) resources(ttl string) string {
	var b strings.Builder
	for _, s := range d.services {
		fmt.Fprintf(&b, `apiVersion: legation.io/v1alpha1
kind: WorkloadIdentity
metadata: {name: %s, namespace: default}
spec:
  node: %s
  ttl: %s
  selectors: ["unix:path:%s", "unix:uid:%d"]
---
apiVersion: v1
kind: Service
metadata: {name: %s, namespace: default}
spec:
  selector: {app: %s}
  ports: [{name: http, port: %d, targetPort: %d}]
---
`, s.name, s.node.name, ttl, s.path, s.uid, s.name, s.name, appPort, appPort)
		address, port := d.host.address(s.name)
		endpoint(&b, s.name, address, port, s.name)
	}
	// A service whose endpoint is another program than declared: a valid
	// identity, and not the expected one.
	fmt.Fprintf(&b, `apiVersion: v1
kind: Service
metadata: {name: decoy, namespace: default}
spec:
  selector: {app: decoy}
  clusterIP: 10.201.78.1
  ports: [{name: http, port: %d, targetPort: %d}]
---
`, appPort, appPort)
	address, port := d.host.decoy("model")
	endpoint(&b, "decoy", address, port, "featurestore")
	return b.String()
}

// endpoint declares that app is served at an address by an identity.
func endpoint(b *strings.Builder, app, address string, port int, identity string) {
	fmt.Fprintf(b, `apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {name: %s, namespace: default}
spec:
  address: %s
  labels: {app: %s}
  ports: {http: %d}
  serviceAccount: %s
---
`, app, address, app, port, identity)
}

func (d *demo) declare(ctx context.Context) error {
	if err := d.plan(ctx); err != nil {
		return err
	}
	return d.apply(ctx, "1h")
}

func (d *demo) apply(ctx context.Context, ttl string) error {
	file := filepath.Join(d.work, "platform.yaml")
	if err := os.WriteFile(file, []byte(d.resources(ttl)), 0o644); err != nil {
		return err
	}
	var applied []struct{ Kind, Name, Action string }
	if err := d.legation(ctx, &applied, "apply", "-f", file); err != nil {
		return err
	}
	d.out.say("  %d resources applied", len(applied))
	return nil
}

func (d *demo) startServices(ctx context.Context) error {
	for _, s := range d.services {
		if err := d.startService(s); err != nil {
			return err
		}
	}
	for _, s := range d.services {
		err := until(ctx, 60*time.Second, s.name+" runs in a session", func() error {
			if err := s.proc.alive(); err != nil {
				return finalError{err}
			}
			out, err := os.ReadFile(s.proc.log)
			if err == nil && !strings.Contains(string(out), "program started") {
				err = errors.New("its proxy is not ready yet")
			}
			return err
		})
		if err != nil {
			return err
		}
		d.out.say("  %-13s on %s as %s, uid %d", s.name, s.node.name, short(id(s.name)), s.uid)
	}
	return nil
}

func (d *demo) startService(s *service) error {
	peers := map[string]string{}
	listen := fmt.Sprintf("127.0.0.1:%d", appPort)
	argv := []string{d.tool("legation-agent"), "run", "--socket", s.node.socket}
	if e, ok := d.host.(*loopback); ok {
		mtls, app := e.ports[s.name][0], e.ports[s.name][1]
		listen = fmt.Sprintf("127.0.0.1:%d", app)
		argv = append(argv, "--inbound", fmt.Sprintf("127.0.0.1:%d=%s", mtls, listen))
		s.outbound = map[string]int{}
		for _, peer := range s.calls {
			port, err := freeport.Find()
			if err != nil {
				return err
			}
			s.outbound[peer] = port
			peers[peer] = fmt.Sprintf("127.0.0.1:%d", port)
			argv = append(argv, "--outbound", fmt.Sprintf("%s:%d=%s", peer, appPort, peers[peer]))
		}
	} else {
		argv = append(argv, "--capture", "--user", fmt.Sprint(s.uid), "--inbound", fmt.Sprint(appPort))
		for _, peer := range s.calls {
			host, port := d.host.address(peer)
			peers[peer] = fmt.Sprintf("%s:%d", host, port)
		}
	}
	argv = append(append(argv, "--"), s.argv(peers, listen)...)
	var err error
	s.proc, err = d.start(s.name, d.host.in(s.name, argv...))
	return err
}

// through is where a client reaches a service by way of its own proxy.
func (d *demo) through(client, server string) string {
	if _, ok := d.host.(*loopback); ok {
		for _, s := range d.services {
			if s.name == client {
				return fmt.Sprintf("127.0.0.1:%d", s.outbound[server])
			}
		}
	}
	if server == "decoy" {
		return fmt.Sprintf("10.201.78.1:%d", appPort)
	}
	host, port := d.host.address(server)
	return fmt.Sprintf("%s:%d", host, port)
}

// direct is where a program listens, on its own host's loopback.
func (d *demo) direct(name string) string {
	if e, ok := d.host.(*loopback); ok {
		return fmt.Sprintf("127.0.0.1:%d", e.ports[name][1])
	}
	return fmt.Sprintf("127.0.0.1:%d", appPort)
}

// flow is what ingestion counted.
type flow struct {
	OK, Failed map[string]int
	LastError  string
}

func (f flow) total() int  { return f.OK["featurestore"] + f.OK["model"] }
func (f flow) failed() int { return f.Failed["featurestore"] + f.Failed["model"] }

func (d *demo) flow(ctx context.Context) (flow, error) {
	var f flow
	raw, err := d.get(ctx, "ingestion", "http://"+d.direct("ingestion")+"/stats")
	if err != nil {
		return f, err
	}
	return f, json.Unmarshal(raw, &f)
}

// get fetches a URL on a service's host.
func (d *demo) get(ctx context.Context, host, url string) ([]byte, error) {
	if _, ok := d.host.(*loopback); ok {
		ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
		defer cancel()
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
		if err != nil {
			return nil, err
		}
		response, err := http.DefaultClient.Do(req)
		if err != nil {
			return nil, err
		}
		defer response.Body.Close()
		return io.ReadAll(io.LimitReader(response.Body, 1<<20))
	}
	var out probeResult
	err := d.probe(ctx, host, &out, "-url", url, "-n", "1", "-body")
	return []byte(out.Body), err
}

func (d *demo) waitFlow(ctx context.Context) error {
	return until(ctx, 60*time.Second, "events flow through all four services", func() error {
		for _, s := range d.services {
			if err := s.proc.alive(); err != nil {
				return finalError{err}
			}
		}
		f, err := d.flow(ctx)
		if err == nil && (f.OK["featurestore"] < 20 || f.OK["model"] < 20) {
			err = fmt.Errorf("so far %v, last error %q", f.OK, f.LastError)
		}
		return err
	})
}
