package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"
)

type connection struct {
	Session, SPIFFEID, Direction, Local, Remote, PeerID, PeerSerial, TLSVersion, Cipher, Group, Cluster string
}

type failure struct {
	SPIFFEID, Direction, Remote, PeerID, Cause, Reason, At string
}

func (d *demo) serviceNamed(name string) *service {
	for _, s := range d.services {
		if s.name == name {
			return s
		}
	}
	return nil
}

// seen finds one connection of an identity's Envoy.
func (d *demo) seen(ctx context.Context, of, direction, peer string) (connection, error) {
	var list []connection
	if err := d.agent(ctx, d.serviceNamed(of).node, &list, "connections", "--spiffe-id", id(of)); err != nil {
		return connection{}, err
	}
	for _, c := range list {
		if c.Direction == direction && c.PeerID == id(peer) {
			return c, nil
		}
	}
	return connection{}, fmt.Errorf("no %s connection of %s with %s", direction, of, peer)
}

// hops prints what both ends of each hop saw, and what the hop costs.
func (d *demo) hops(ctx context.Context) error {
	rows := [][]string{{"HOP", "TLS", "KEY EXCHANGE", "CIPHER", "SERVER SAW", "CLIENT SAW", "DIRECT p50", "mTLS p50", "ADDED p50"}}
	for _, hop := range [][3]string{
		{"ingestion", "featurestore", "/v1/features?entity=user-1"}, {"ingestion", "model", "/healthz"},
		{"model", "retrieval", "/healthz"}, {"retrieval", "featurestore", "/v1/features?entity=user-1"},
	} {
		client, server, path := hop[0], hop[1], hop[2]
		var out, in connection
		err := until(ctx, 10*time.Second, "both ends of "+client+" → "+server, func() (err error) {
			if out, err = d.seen(ctx, client, "outbound", server); err != nil {
				return err
			}
			in, err = d.seen(ctx, server, "inbound", client)
			return err
		})
		if err != nil {
			return err
		}
		var direct, through probeResult
		if err := d.probe(ctx, server, &direct, "-url", "http://"+d.direct(server)+path, "-n", "300"); err != nil {
			return err
		}
		if err := d.probe(ctx, client, &through, "-url", "http://"+d.through(client, server)+path, "-n", "300"); err != nil {
			return err
		}
		ms := func(us float64) string { return fmt.Sprintf("%.2f ms", us/1000) }
		rows = append(rows, []string{client + " → " + server, in.TLSVersion, in.Group, in.Cipher, short(in.PeerID), short(out.PeerID), ms(direct.P50us), ms(through.P50us), ms(through.P50us - direct.P50us)})
		if in.TLSVersion != "TLSv1.3" || out.TLSVersion != "TLSv1.3" {
			d.out.check(false, "%s → %s speaks %s / %s, not TLSv1.3", client, server, in.TLSVersion, out.TLSVersion)
		}
	}
	d.out.table(rows)
	d.out.check(true, "each hop is mutual TLS 1.3 between the identities that both ends saw")
	return nil
}

// reason waits for the newest failure of an identity's Envoy with one of the causes.
func (d *demo) reason(ctx context.Context, of, direction string, after time.Time, causes ...string) (failure, error) {
	var found failure
	err := until(ctx, 5*time.Second, "Envoy of "+of+" tells the reason", func() error {
		var list []failure
		if err := d.agent(ctx, d.serviceNamed(of).node, &list, "connections", "--failures", "--spiffe-id", id(of)); err != nil {
			return err
		}
		for _, f := range list {
			at, err := time.Parse(time.RFC3339Nano, f.At)
			if err != nil || f.Direction != direction || at.Before(after) {
				continue
			}
			for _, c := range causes {
				if f.Cause == c {
					found = f
					return nil
				}
			}
		}
		return fmt.Errorf("none of %v among %d failures", causes, len(list))
	})
	return found, err
}

func (d *demo) refusals(ctx context.Context) error {
	host, port := d.host.address("featurestore")
	target := fmt.Sprintf("%s:%d", host, port)
	self, err := os.Executable()
	if err != nil {
		return err
	}
	for _, r := range []struct{ what, flag, cause string }{
		{"plaintext", "-plaintext", "plaintext"},
		{"a certificate of a foreign CA", "-foreign", "unknown_ca"},
	} {
		after := time.Now().Add(-time.Second)
		var got probeResult
		if err := output(ctx, &got, d.host.stranger(self, "probe", r.flag, target)...); err != nil {
			return err
		}
		f, err := d.reason(ctx, "featurestore", "inbound", after, r.cause)
		if err != nil {
			return err
		}
		d.out.check(got.Error != "", "%s is refused: Envoy says %q", r.what, f.Reason)
	}
	after := time.Now().Add(-time.Second)
	var got probeResult
	if err := d.probe(ctx, "ingestion", &got, "-plaintext", d.through("ingestion", "decoy")); err != nil {
		return err
	}
	f, err := d.reason(ctx, "ingestion", "outbound", after, "wrong_name")
	if err != nil {
		return err
	}
	d.out.check(got.Error != "", "a valid but wrong identity is refused: Envoy says %q", f.Reason)
	if !d.explicit {
		got = probeResult{}
		if err := d.probe(ctx, "ingestion", &got, "-plaintext", "10.201.79.1:9999"); err != nil {
			return err
		}
		d.out.check(got.Error != "", "a destination that nothing names is refused: %s", got.Error)
	}
	return nil
}

// serials are what is served now, by service.
func (d *demo) serials(ctx context.Context) (map[string]string, error) {
	all := map[string]string{}
	for _, n := range d.nodes {
		var st struct {
			Identities []struct{ SPIFFEID, Serial string }
		}
		if err := d.agent(ctx, n, &st, "status", "--node"); err != nil {
			return nil, err
		}
		for _, i := range st.Identities {
			all[i.SPIFFEID] = i.Serial
		}
	}
	return all, nil
}

// presented is the serial that a service's Envoy shows on a fresh connection.
func (d *demo) presented(ctx context.Context, name string) (string, error) {
	clients := map[string]string{"featurestore": "ingestion", "model": "ingestion", "retrieval": "model"}
	client, server := clients[name], name
	if name == "ingestion" {
		client, server = "ingestion", "model"
	}
	var p probeResult
	hold, err := d.background(ctx, client, "-url", "http://"+d.through(client, server)+"/healthz", "-n", "400")
	if err != nil {
		return "", err
	}
	of, direction, peer := client, "outbound", server
	if name == "ingestion" {
		of, direction, peer = server, "inbound", client
	}
	var list []connection
	serial := ""
	err = until(ctx, 5*time.Second, "a fresh connection shows "+name+"'s certificate", func() error {
		if err := d.agent(ctx, d.serviceNamed(of).node, &list, "connections", "--spiffe-id", id(of)); err != nil {
			return err
		}
		for _, c := range list {
			if c.Direction == direction && c.PeerID == id(peer) {
				serial = c.PeerSerial // the newest is last
			}
		}
		if serial == "" {
			return errors.New("not seen yet")
		}
		return nil
	})
	p, werr := hold()
	_ = p
	return serial, errors.Join(err, werr)
}

func (d *demo) rotation(ctx context.Context) error {
	before, err := d.flow(ctx)
	if err != nil {
		return err
	}
	old, err := d.serials(ctx)
	if err != nil {
		return err
	}
	started := time.Now()
	if err := d.apply(ctx, "2h"); err != nil { // a changed entry is issued anew at once
		return err
	}
	var took time.Duration
	err = until(ctx, 30*time.Second, "every certificate is new", func() error {
		fresh, err := d.serials(ctx)
		if err != nil {
			return err
		}
		for _, s := range d.services {
			if fresh[id(s.name)] == "" || fresh[id(s.name)] == old[id(s.name)] {
				return fmt.Errorf("%s still has %s", s.name, old[id(s.name)])
			}
		}
		took = time.Since(started)
		return nil
	})
	if err != nil {
		return err
	}
	for _, s := range d.services {
		err := until(ctx, 10*time.Second, s.name+" presents its new certificate", func() error {
			serial, err := d.presented(ctx, s.name)
			if err == nil && serial == old[id(s.name)] {
				err = errors.New("still the old one")
			}
			return err
		})
		if err != nil {
			return err
		}
	}
	var after flow
	err = until(ctx, 20*time.Second, "events go on", func() (err error) {
		if after, err = d.flow(ctx); err == nil && after.total() < before.total()+100 {
			err = fmt.Errorf("%d since", after.total()-before.total())
		}
		return err
	})
	if err != nil {
		return err
	}
	failed := after.failed() - before.failed()
	d.out.check(failed == 0, "%d certificates rotated in %d ms; meanwhile %d requests went well and %d failed", len(d.services), took.Milliseconds(), after.total()-before.total(), failed)
	return nil
}

func (d *demo) revocation(ctx context.Context) error {
	ready := filepath.Join(d.work, "held")
	wait, err := d.background(ctx, "ingestion", "-watch", d.through("ingestion", "model"), "-signal", ready)
	if err != nil {
		return err
	}
	err = until(ctx, 10*time.Second, "a connection is held open", func() error { _, err := os.Stat(ready); return err })
	if err != nil {
		return err
	}
	bystander, err := d.background(ctx, "model", "-hold", d.through("model", "retrieval"), "-for", "2s", "-signal", ready+"-too")
	if err != nil {
		return err
	}
	err = until(ctx, 10*time.Second, "a bystander's connection is held open", func() error { _, err := os.Stat(ready + "-too"); return err })
	if err != nil {
		return err
	}
	var r struct {
		CRLNumber                                                                 uint64
		Serials, Missing                                                          []string
		Enforcing, Acknowledged, Delivered, Unknown, ConnectionsClosed            int
		CommittedMillis, AcknowledgedMillis, ConnectionsMillis, ConnectionsFailed float64
	}
	started := now()
	err = d.legation(ctx, &r, "revoke", id("ingestion"), "--reason", "demo")
	if err != nil {
		return err
	}
	got, err := wait()
	if err != nil {
		return err
	}
	d.out.say("  CRL %d with %d serials: %d enforcing, %d acknowledged, %d delivered, %d unknown; committed after %.1f ms, last acknowledgement after %.1f ms",
		r.CRLNumber, len(r.Serials), r.Enforcing, r.Acknowledged, r.Delivered, r.Unknown, r.CommittedMillis, r.AcknowledgedMillis)
	d.out.check(got.Refused > started, "new connections of the revoked identity are refused %.0f ms after the command began (it ran for the whole of a process start): %s", got.Refused-started, got.Error)
	d.out.check(got.Ended > started, "its open connection was ended %.0f ms after the command began", got.Ended-started)
	d.out.check(r.ConnectionsClosed > 0 && r.ConnectionsMillis < 100 && r.ConnectionsFailed == 0, "%d connections ended, the last %.1f ms after the revocation reached its agent", r.ConnectionsClosed, r.ConnectionsMillis)
	d.out.check(len(r.Missing) == 0, "nobody is missing %s", strings.Join(r.Missing, ", "))
	still, err := bystander()
	if err != nil {
		return err
	}
	d.out.check(still.Error == "", "a bystander's open connection (model → retrieval) was left alone %s", still.Error)
	before, err := d.flow(ctx)
	if err != nil {
		return err
	}
	return until(ctx, 10*time.Second, "ingestion's requests fail now", func() error {
		after, err := d.flow(ctx)
		if err == nil && after.failed() <= before.failed() {
			err = errors.New("no failure yet")
		}
		if err == nil {
			d.out.check(after.total() == before.total(), "ingestion gets nothing through any more")
		}
		return err
	})
}
