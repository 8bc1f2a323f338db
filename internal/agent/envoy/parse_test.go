package envoy

import (
	"context"
	"log/slog"
	"net"
	"net/url"
	"os"
	"strings"
	"testing"

	datav3 "github.com/envoyproxy/go-control-plane/envoy/data/accesslog/v3"
	"google.golang.org/protobuf/proto"

	"github.com/legation-io/legation/internal/accesslog"
	"github.com/legation-io/legation/internal/agent/envoy/envoytest"
)

func TestTheKernelsTableIsRead(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	c, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	accepted, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer accepted.Close()
	pair, err := ParsePair(accepted.LocalAddr().String(), accepted.RemoteAddr().String())
	if err != nil {
		t.Fatal(err)
	}
	if n, failures := closeByTable(os.Getpid(), []Pair{pair}, errGone); n != 1 || len(failures) > 0 {
		t.Errorf("closed %d, failures %q", n, failures)
	}
	if err := ended(c); err != nil {
		t.Error(err)
	}
}

const table = `  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0100007F:1F90 0200000A:C350 01 00000000:00000000 00:00000000 00000000     0        0 4711 1 ffff 20 4 30 10 -1
`
const table6 = `  sl  local_address                         remote_address                        st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0000000000000000FFFF00000100007F:1F90 0000000000000000FFFF00000200000A:C350 01 00000000:00000000 00:00000000 00000000     0        0 4711 1 ffff
`

func TestAnIPv4AddressIsTheSameInBothTables(t *testing.T) {
	for _, text := range []string{table, table6} {
		var got []socket
		if err := parseSockets(strings.NewReader(text), func(s socket) { got = append(got, s) }); err != nil {
			t.Fatal(err)
		}
		if len(got) != 1 || got[0].pair.String() != "127.0.0.1:8080 10.0.0.2:50000" || got[0].inode != 4711 || got[0].state != 1 {
			t.Errorf("got %+v", got)
		}
	}
}

func FuzzKernelTable(f *testing.F) {
	f.Add(table)
	f.Add(table6)
	f.Fuzz(func(t *testing.T, text string) {
		_ = parseSockets(strings.NewReader(text), func(s socket) { _ = s.pair.String() })
	})
}

func FuzzServedCertificates(f *testing.F) {
	f.Add([]byte(`{"certificates":[{"cert_chain":[{"serial_number":"0a","subject_alt_names":[{"uri":"spiffe://a/b"}],"valid_from":"2026-11-20T11:05:13Z","expiration_time":"2026-11-20T13:05:13Z"}]}]}`))
	f.Fuzz(func(t *testing.T, body []byte) {
		_, _ = parseCerts(body) // must not panic
	})
}

func FuzzAccessLogEntry(f *testing.F) {
	good, err := proto.Marshal(&datav3.TCPAccessLogEntry{CommonProperties: &datav3.AccessLogCommon{
		StreamId: "x", AccessLogType: datav3.AccessLogType_TcpUpstreamConnected,
		CustomTags: map[string]string{accesslog.TagUpstreamCert: "-----BEGIN", accesslog.TagEmitted: "1.000001"},
	}})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good, accesslog.Inbound)
	f.Add(good, accesslog.Outbound)
	f.Add([]byte{}, accesslog.InboundListener)
	logs := NewLogServer(LogServerParams{Metrics: NewMetrics(nil)})
	f.Fuzz(func(t *testing.T, body []byte, name string) {
		var e datav3.TCPAccessLogEntry
		if proto.Unmarshal(body, &e) != nil {
			return
		}
		logs.entry(t.Context(), name, &e)
		for _, failure := range logs.Failures() {
			if len(failure.Reason) > maxText {
				t.Error("a reason without bound")
			}
		}
	})
}

func TestTheSerialOfAnUpstreamCertificateIsRead(t *testing.T) {
	leaf := envoytest.NewCA(t, "ours").Issue("spiffe://a.test/x")
	if got := certSerial(url.PathEscape(string(leaf.CertPEM))); got != Serial(leaf.Serial()) {
		t.Errorf("serial %s, want %s", got, leaf.Serial())
	}
	for _, bad := range []string{"", "-", "%zz", "-----BEGIN%20CERTIFICATE-----", strings.Repeat("a", 1<<17)} {
		if got := certSerial(bad); got != "" {
			t.Errorf("%.20q has serial %s", bad, got)
		}
	}
}

func TestEnvoysLinesKeepTheirLevel(t *testing.T) {
	var b strings.Builder
	logger := slog.New(slog.NewTextHandler(&b, &slog.HandlerOptions{Level: slog.LevelWarn, ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr {
		if a.Key == slog.TimeKey {
			return slog.Attr{}
		}
		return a
	}}))
	l := &logLines{logger: logger, ctx: context.Background()}
	for _, part := range []string{"@info main starting\n@warn", "ing upstream careful\n", "@critical main error init", "ializing\nraw stack\n", strings.Repeat("x", 3*maxLine)} {
		if n, err := l.Write([]byte(part)); n != len(part) || err != nil {
			t.Fatal(n, err)
		}
	}
	want := `level=WARN msg="envoy: careful" logger=upstream
level=ERROR msg="envoy: error initializing" logger=main
level=WARN msg="envoy: raw stack" logger=""
`
	if b.String() != want {
		t.Errorf("got\n%s\nwant\n%s", b.String(), want)
	}
	if len(l.part) > maxLine {
		t.Errorf("%d bytes are kept of one line", len(l.part))
	}
}

func TestATableReplacesWhatItMissedTheEndOf(t *testing.T) {
	var table Table
	pair, err := ParsePair("10.0.0.1:15006", "10.0.0.2:4000")
	if err != nil {
		t.Fatal(err)
	}
	one := &Connection{ID: "1", Direction: Inbound, Local: pair.Local, Remote: pair.Remote, PeerID: "a"}
	two := &Connection{ID: "2", Direction: Inbound, Local: pair.Local, Remote: pair.Remote, PeerID: "b"}
	table.add(one)
	table.add(two)
	if got := table.Open(nil); len(got) != 1 || got[0].PeerID != "b" {
		t.Errorf("open: %v", got)
	}
	if table.remove("1") != nil {
		t.Error("what was replaced is still there")
	}
	table.remove("2")
	table.Reset()
	if table.Len() != 0 || len(table.byPair) != 0 {
		t.Error("not empty")
	}
}
