package pebble

import (
	"context"
	"fmt"
	"net"
	"strings"
	"sync"
	"testing"

	"github.com/libdns/libdns"
	"github.com/miekg/dns"
)

// Names is a name server for tests: every name is at 127.0.0.1, TXT records
// are those that were appended. It is a libdns provider of its own zone too.
type Names struct {
	Address string // "address:port", UDP and TCP
	Zone    string // e.g. "test."

	mu  sync.Mutex
	txt map[string][]string
	// answer, when set, replaces what is answered.
	answer func(*dns.Msg) *dns.Msg
}

// NewNames serves until the test ends.
func NewNames(t testing.TB) *Names {
	t.Helper()
	n := &Names{Zone: "test.", txt: map[string][]string{}}
	packets, stream, err := pairOfPorts()
	for range 20 { // the TCP port of that number may be taken
		if err == nil {
			break
		}
		packets, stream, err = pairOfPorts()
	}
	if err != nil {
		t.Fatal(err)
	}
	n.Address = packets.LocalAddr().String()
	var serving sync.WaitGroup
	t.Cleanup(serving.Wait)
	for _, s := range []*dns.Server{{PacketConn: packets, Handler: n}, {Listener: stream, Handler: n}} {
		started := make(chan struct{})
		s.NotifyStartedFunc = func() { close(started) }
		serving.Go(func() { s.ActivateAndServe() })
		<-started
		t.Cleanup(func() { s.Shutdown() })
	}
	return n
}

// pairOfPorts listens at one number by UDP and TCP.
func pairOfPorts() (net.PacketConn, net.Listener, error) {
	packets, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		return nil, nil, err
	}
	stream, err := net.Listen("tcp", packets.LocalAddr().String())
	if err != nil {
		packets.Close()
		return nil, nil, err
	}
	return packets, stream, nil
}

// ServeDNS implements dns.Handler.
func (n *Names) ServeDNS(w dns.ResponseWriter, r *dns.Msg) {
	n.mu.Lock()
	answer := n.answer
	n.mu.Unlock()
	if answer != nil {
		w.WriteMsg(answer(r))
		return
	}
	m := new(dns.Msg)
	m.SetReply(r)
	for _, q := range r.Question {
		head := dns.RR_Header{Name: q.Name, Rrtype: q.Qtype, Class: dns.ClassINET, Ttl: 0}
		switch q.Qtype {
		case dns.TypeA:
			m.Answer = append(m.Answer, &dns.A{Hdr: head, A: net.IPv4(127, 0, 0, 1)})
		case dns.TypeTXT:
			n.mu.Lock()
			for _, v := range n.txt[strings.ToLower(q.Name)] {
				m.Answer = append(m.Answer, &dns.TXT{Hdr: head, Txt: []string{v}})
			}
			n.mu.Unlock()
		case dns.TypeSOA:
			if strings.EqualFold(q.Name, n.Zone) {
				m.Answer = append(m.Answer, &dns.SOA{Hdr: head, Ns: "ns." + n.Zone, Mbox: "m." + n.Zone, Serial: 1, Refresh: 1, Retry: 1, Expire: 1})
			}
		}
	}
	w.WriteMsg(m)
}

// Misanswer makes the server answer what f makes, to do harm.
func (n *Names) Misanswer(f func(*dns.Msg) *dns.Msg) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.answer = f
}

func (n *Names) name(zone, name string) (string, error) {
	if zone != n.Zone {
		return "", fmt.Errorf("the zone %q is not here", zone)
	}
	return strings.ToLower(libdns.AbsoluteName(name, zone)), nil
}

// AppendRecords implements libdns.RecordAppender.
func (n *Names) AppendRecords(_ context.Context, zone string, records []libdns.Record) ([]libdns.Record, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, r := range records {
		name, err := n.name(zone, r.RR().Name)
		if err != nil {
			return nil, err
		}
		n.txt[name] = append(n.txt[name], r.RR().Data)
	}
	return records, nil
}

// DeleteRecords implements libdns.RecordDeleter.
func (n *Names) DeleteRecords(_ context.Context, zone string, records []libdns.Record) ([]libdns.Record, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, r := range records {
		name, err := n.name(zone, r.RR().Name)
		if err != nil {
			return nil, err
		}
		var left []string
		for _, v := range n.txt[name] {
			if v != r.RR().Data {
				left = append(left, v)
			}
		}
		n.txt[name] = left
	}
	return records, nil
}

// Left is how many TXT records there are.
func (n *Names) Left() int {
	n.mu.Lock()
	defer n.mu.Unlock()
	count := 0
	for _, v := range n.txt {
		count += len(v)
	}
	return count
}
