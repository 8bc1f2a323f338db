package main

import (
	"context"
	"crypto/x509"
	"fmt"
	"path/filepath"
	"time"

	adminv1 "github.com/legation-io/legation/api/admin/v1"
	nodev1 "github.com/legation-io/legation/api/node/v1"
	"github.com/legation-io/legation/internal/agent/upstream"
	"github.com/legation-io/legation/internal/store"
	"github.com/legation-io/legation/internal/store/etcd"
	"google.golang.org/protobuf/proto"
)

const agents = 100

// push is from an operator's request to the last of 100 agents, with what
// the store's commit takes left out.
func push(ctx context.Context, r *run) ([]Row, error) {
	defer calmGC()()
	p, err := startPlane(ctx, r)
	if err != nil {
		return nil, err
	}
	defer p.close()
	if err := p.apply(ctx, identity("victim", "unix:uid:1")); err != nil {
		return nil, err
	}
	ns, err := attachNodes(ctx, p, 0, 1)
	if err != nil {
		return nil, err
	}
	defer ns.close()
	st, err := openStreams(ctx, p, 1, agents-1)
	if err != nil {
		return nil, err
	}
	defer st.close()
	floor, err := newFan("tcp", "127.0.0.1:0", agents)
	if err != nil {
		return nil, err
	}
	defer floor.close()
	declared, err := pushDeclared(ctx, r, p, st, ns, floor)
	if err != nil {
		return nil, err
	}
	revoked, err := pushRevoked(ctx, r, p, st, ns, floor)
	return append(declared, revoked...), err
}

func pushDeclared(ctx context.Context, r *run, p *plane, st *streams, ns *nodes, floor *fan) ([]Row, error) {
	// The server's own commits cannot be seen from here: a store like its,
	// on the same disk, commits as much in turn with it.
	s, err := etcd.Open(ctx, etcd.Config{Dir: filepath.Join(p.dir, "twin")})
	if err != nil {
		return nil, err
	}
	defer s.Close()
	var total, commits, sockets times
	cpu, err := cpuOf(p.pid)
	if err != nil {
		return nil, err
	}
	n := of(r, 200, 30)
	for i := range n {
		name := fmt.Sprintf("push-%d", i)
		doc := identity(name, "unix:uid:65000")
		start := time.Now()
		if _, err := s.Commit(ctx, store.Txn{Then: []store.Op{{Key: store.Prefix + "bench.test/bench/twin/" + name, Value: []byte(doc)}}}); err != nil {
			return nil, err
		}
		commits = append(commits, time.Since(start))
		start = time.Now()
		last, err := st.lastOf(ctx, func(res *nodev1.TrustResource) bool {
			return res.GetType() == "entry" && res.GetName() == "bench/"+name
		},
			ns, func(v *upstream.View) bool { return v.Entries["bench/"+name] != nil }, func() error { return p.apply(ctx, doc) })
		if err != nil {
			return nil, err
		}
		total = append(total, last.Sub(start))
		took, err := floor.send(len(doc))
		if err != nil {
			return nil, err
		}
		sockets = append(sockets, took)
	}
	used, err := cpuOf(p.pid)
	if err != nil {
		return nil, err
	}
	r.say("declared: p50 %.2f ms, p99 %.2f ms; a commit p50 %.2f, p99 %.2f ms", total.p50(), total.p99(), commits.p50(), commits.p99())
	const what = "declared change, last of 100 agents, beyond the commit"
	return []Row{
		fact(what+", p50", total.p50()-commits.p50(), "ms").beside("raw sockets", sockets.p50()),
		atMost(what+", p99", total.p99()-commits.p50(), "ms", 10).beside("raw sockets", sockets.p99()),
		fact("declared change to 100 agents, control plane CPU", ms(used-cpu)/float64(n), "ms"),
	}, nil
}

func pushRevoked(ctx context.Context, r *run, p *plane, st *streams, ns *nodes, floor *fan) ([]Row, error) {
	var beyond, sockets times
	for range of(r, 100, 20) {
		serial, err := issueOne(ctx, ns.links[0], "victim")
		if err != nil {
			return nil, err
		}
		var committed time.Duration
		start := time.Now()
		last, err := st.lastOf(ctx, crlAfter(crlNumber(ns.links[0])), ns, func(v *upstream.View) bool { return revokedIn(v, serial) }, func() error {
			stream, err := p.admin.Revoke(ctx, &adminv1.RevokeRequest{Serial: serial, Reason: "bench", WaitMillis: 1})
			if err != nil {
				return err
			}
			for {
				progress, err := stream.Recv()
				if err != nil {
					return err
				}
				if committed = time.Duration(progress.GetCommittedNanos()); progress.GetDone() {
					return nil
				}
			}
		})
		if err != nil {
			return nil, err
		}
		beyond = append(beyond, last.Sub(start)-committed)
		took, err := floor.send(crlBytes(ns.links[0]))
		if err != nil {
			return nil, err
		}
		sockets = append(sockets, took)
	}
	const what = "revocation, last of 100 agents, beyond the commit"
	return []Row{
		fact(what+", p50", beyond.p50(), "ms").beside("raw sockets", sockets.p50()),
		atMost(what+", p99", beyond.p99(), "ms", 10).beside("raw sockets", sockets.p99()),
	}, nil
}

// issueOne has a certificate signed and returns its serial.
func issueOne(ctx context.Context, l *upstream.Link, name string) (string, error) {
	csr, err := newCSR(idOf(name))
	if err != nil {
		return "", err
	}
	results, err := l.SignX509(ctx, []*nodev1.X509Item{{Entry: "bench/" + name, SpiffeId: idOf(name), Instance: "uid:0", Csr: csr}})
	if err != nil {
		return "", err
	}
	if refusal := results[0].GetRefusal(); refusal != nil {
		return "", fmt.Errorf("sign %s: %s", name, refusal.GetMessage())
	}
	leaf, err := x509.ParseCertificate(results[0].GetChain()[0])
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("%x", leaf.SerialNumber.Bytes()), nil
}

// revokedIn says whether a node knows the revocation and the CRL that has it.
func revokedIn(v *upstream.View, serial string) bool {
	for _, rev := range v.Revocations {
		for _, s := range rev.GetSerials() {
			if s == serial {
				return v.CRLs[rev.GetAuthority()].GetNumber() >= rev.GetCrlNumber()
			}
		}
	}
	return false
}

func crlNumber(l *upstream.Link) uint64 {
	v, _ := l.View()
	return v.CRLs["default"].GetNumber()
}

// crlAfter matches a CRL of a higher number.
func crlAfter(number uint64) func(*nodev1.TrustResource) bool {
	return func(res *nodev1.TrustResource) bool {
		var crl nodev1.CRL
		return res.GetType() == "crl" && proto.Unmarshal(res.GetBody(), &crl) == nil && crl.GetNumber() > number
	}
}

// crlBytes is what the newest CRL is on the wire, about.
func crlBytes(l *upstream.Link) int {
	v, _ := l.View()
	n := 0
	for _, c := range v.CRLs {
		for _, der := range c.GetLists() {
			n += len(der)
		}
	}
	return n
}
