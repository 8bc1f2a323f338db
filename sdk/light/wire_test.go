package light

import (
	"bytes"
	"encoding/pem"
	"errors"
	"io"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	workloadv1 "github.com/legation-io/legation/sdk/api/workload/v1"
	"github.com/legation-io/legation/sdk/internal/fakeapi"
	"github.com/legation-io/legation/sdk/internal/pkitest"
)

// script is a peer whose every byte the test writes: it gives its bytes in
// pieces of size step, and keeps what it is sent.
type script struct {
	in   []byte
	step int
	out  bytes.Buffer
}

func (s *script) Write(p []byte) (int, error) { return s.out.Write(p) }

func (s *script) Read(p []byte) (int, error) {
	if len(s.in) == 0 {
		return 0, io.EOF
	}
	n := copy(p, s.in[:min(len(s.in), max(s.step, 1))])
	s.in = s.in[n:]
	return n, nil
}

// peer writes frames as another implementation does.
type peer struct {
	b      bytes.Buffer
	fr     *http2.Framer
	fields bytes.Buffer
	enc    *hpack.Encoder
}

func newPeer() *peer {
	p := &peer{}
	p.fr = http2.NewFramer(&p.b, nil)
	p.fr.AllowIllegalWrites = true
	p.enc = hpack.NewEncoder(&p.fields)
	return p
}

func (p *peer) settings(s ...http2.Setting) *peer { _ = p.fr.WriteSettings(s...); return p }

func (p *peer) block(pairs ...string) []byte {
	p.fields.Reset()
	for n := 0; n < len(pairs); n += 2 {
		_ = p.enc.WriteField(hpack.HeaderField{Name: pairs[n], Value: pairs[n+1]})
	}
	return bytes.Clone(p.fields.Bytes())
}

func (p *peer) headers(id uint32, end bool, pairs ...string) *peer {
	_ = p.fr.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: p.block(pairs...), EndHeaders: true, EndStream: end})
	return p
}

func (p *peer) ok(id uint32) *peer {
	return p.headers(id, false, ":status", "200", "content-type", "application/grpc")
}

func (p *peer) status(id uint32, code, message string) *peer {
	return p.headers(id, true, "grpc-status", code, "grpc-message", message)
}

func grpcFrame(message []byte) []byte {
	return append([]byte{0, byte(len(message) >> 24), byte(len(message) >> 16), byte(len(message) >> 8), byte(len(message))}, message...)
}

func (p *peer) data(id uint32, raw []byte) *peer { _ = p.fr.WriteData(id, false, raw); return p }

// play runs the script against two calls and returns what came.
func play(t testing.TB, raw []byte, step, maxMessage int) (got []string, sent []byte, err error) {
	t.Helper()
	s := &script{in: raw, step: step}
	c, err := newConn(s, maxMessage)
	if err != nil {
		t.Fatal(err)
	}
	defer c.close()
	one, err := c.call("/one", []byte("question"), false)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.call("/two", nil, true); err != nil {
		t.Fatal(err)
	}
	for range 1000 {
		e, err := c.next()
		if err != nil {
			return got, s.out.Bytes(), err
		}
		name := "two"
		if e.stream == one {
			name = "one"
		}
		switch {
		case e.err != nil:
			got = append(got, name+" ended "+e.err.Error())
		case e.message == nil:
			got = append(got, name+" empty")
		default:
			got = append(got, name+" "+string(e.message.Bytes()))
			e.message.Close()
		}
	}
	t.Fatal("1000 events without an end")
	return nil, nil, nil
}

func TestFramesComeInAnyPieces(t *testing.T) {
	p := newPeer().settings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 1 << 20}, http2.Setting{ID: 0x99, Val: 1})
	_ = p.fr.WritePing(false, [8]byte{1, 2, 3})
	_ = p.fr.WriteRawFrame(0xfa, 0, 0, []byte("unknown"))
	_ = p.fr.WritePriority(1, http2.PriorityParam{})
	p.ok(1)
	first := grpcFrame([]byte("hello"))
	p.data(1, first[:3]).data(1, first[3:7]).data(1, nil).data(1, slices.Concat(first[7:], grpcFrame(nil), grpcFrame([]byte("again"))))
	_ = p.fr.WriteDataPadded(1, false, grpcFrame([]byte("padded")), make([]byte, 200))
	// Headers over three frames, with priority.
	block := p.block(":status", "200", "content-type", "application/grpc+proto", "x", strings.Repeat("y", 300))
	_ = p.fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 3, BlockFragment: block[:4], Priority: http2.PriorityParam{StreamDep: 1, Weight: 3}, PadLength: 9})
	_ = p.fr.WriteContinuation(3, false, block[4:9])
	_ = p.fr.WriteContinuation(3, true, block[9:])
	p.data(3, grpcFrame([]byte("there"))).status(3, "0", "")
	p.status(1, "7", "no%20identity %e2%82%ac %zz")
	for _, step := range []int{1, 7, 1 << 20} {
		got, sent, err := play(t, p.b.Bytes(), step, 100)
		want := []string{"one hello", "one empty", "one again", "one padded", "two there", "two ended OK: ", "one ended PermissionDenied: no identity € %zz"}
		if !slices.Equal(got, want) || !errors.Is(err, errGone) {
			t.Errorf("in pieces of %d: %q, %v", step, got, err)
		}
		checkSent(t, sent)
	}
}

// checkSent reads what the client wrote as another implementation does.
func checkSent(t *testing.T, sent []byte) {
	t.Helper()
	rest, ok := bytes.CutPrefix(sent, []byte(http2.ClientPreface))
	if !ok {
		t.Fatal("no preface")
	}
	fr := http2.NewFramer(nil, bytes.NewReader(rest))
	fr.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	seen := map[string]int{}
	for {
		f, err := fr.ReadFrame()
		if err != nil {
			if !errors.Is(err, io.EOF) {
				t.Errorf("a frame that another implementation refuses: %v", err)
			}
			break
		}
		switch f := f.(type) {
		case *http2.MetaHeadersFrame:
			seen["headers"]++
			if f.PseudoValue("method") != "POST" || f.RegularFields()[len(f.RegularFields())-1].Name != "workload.spiffe.io" {
				t.Errorf("headers %v", f.Fields)
			}
		case *http2.DataFrame:
			seen["data"]++
			if f.StreamID == 1 && (!f.StreamEnded() || !bytes.Equal(f.Data(), grpcFrame([]byte("question")))) || f.StreamID == 3 && f.StreamEnded() {
				t.Errorf("data %q", f.Data())
			}
		case *http2.SettingsFrame:
			if f.IsAck() {
				seen["ack"]++
			}
		case *http2.PingFrame:
			if f.IsAck() && f.Data == [8]byte{1, 2, 3} {
				seen["pong"]++
			}
		}
	}
	for what, n := range map[string]int{"headers": 2, "data": 2, "ack": 1, "pong": 1} {
		if seen[what] != n {
			t.Errorf("%d × %s were sent, want %d", seen[what], what, n)
		}
	}
}

func TestCallsEndAsThePeerSays(t *testing.T) {
	for name, row := range map[string]struct {
		peer func() *peer
		want []string
	}{
		"reset": {func() *peer {
			p := newPeer().settings()
			_ = p.fr.WriteRSTStream(1, http2.ErrCodeRefusedStream)
			_ = p.fr.WriteRSTStream(3, http2.ErrCodeCancel)
			return p
		}, []string{"one ended Unavailable: the stream was reset with HTTP/2 error 7", "two ended Canceled: the stream was reset with HTTP/2 error 8"}},
		"going away in peace lets what it knows end": {func() *peer {
			p := newPeer().settings()
			_ = p.fr.WriteGoAway(1, http2.ErrCodeNo, []byte("bye"))
			return p.ok(1).data(1, grpcFrame([]byte("x"))).status(1, "0", "")
		}, []string{`two ended Unavailable: the Workload API goes away (HTTP/2 error 0): "bye"`, "one x", "one ended OK: "}},
		"refused in headers alone": {func() *peer {
			return newPeer().settings().headers(1, true, ":status", "200", "content-type", "application/grpc", "grpc-status", "12")
		}, []string{"one ended Unimplemented: "}},
		"not gRPC": {func() *peer {
			return newPeer().settings().headers(1, false, ":status", "404").headers(3, false, ":status", "200", "content-type", "text/html")
		}, []string{`one ended Unavailable: HTTP status "404"; is this a gRPC server?`, `two ended Unknown: content type "text/html" is not gRPC's`}},
		"informational headers first": {func() *peer {
			return newPeer().settings().headers(1, false, ":status", "103").ok(1).status(1, "16", "who?")
		}, []string{"one ended Unauthenticated: who?"}},
		"without a status": {func() *peer {
			p := newPeer().settings().ok(1).ok(3).headers(1, true, "x", "y")
			_ = p.fr.WriteData(3, true, nil)
			return p
		}, []string{"one ended Unknown: the call ended without a status", "two ended Unknown: the call ended without a status"}},
		"with a status that cannot be": {func() *peer {
			return newPeer().settings().ok(1).status(1, "many", "").ok(3).status(3, "-1", "")
		}, []string{"one ended Unknown: ", "two ended Unknown: "}},
		"data after the end is not looked at": {func() *peer {
			p := newPeer().settings()
			_ = p.fr.WriteRSTStream(1, http2.ErrCodeInternal)
			return p.data(1, []byte("late")).headers(1, true, "grpc-status", "0")
		}, []string{"one ended Internal: the stream was reset with HTTP/2 error 2"}},
	} {
		t.Run(name, func(t *testing.T) {
			got, _, err := play(t, row.peer().b.Bytes(), 1<<20, 100)
			if !slices.Equal(got, row.want) || !errors.Is(err, errGone) {
				t.Errorf("%q, %v; want %q", got, err, row.want)
			}
		})
	}
}

func TestAPeerThatBreaksTheProtocolIsLeft(t *testing.T) {
	raw := func(typ http2.FrameType, flags http2.Flags, id uint32, payload []byte) func(*peer) {
		return func(p *peer) { _ = p.fr.WriteRawFrame(typ, flags, id, payload) }
	}
	for name, bend := range map[string]func(*peer){
		"no SETTINGS first":                 func(p *peer) { p.b.Reset(); p.ok(1) },
		"HTTP/1":                            func(p *peer) { p.b.Reset(); p.b.WriteString("HTTP/1.1 400 Bad Request\r\n\r\n") },
		"a frame that is too long":          raw(http2.FrameData, 0, 1, make([]byte, maxFrame+1)),
		"a push":                            raw(http2.FramePushPromise, 4, 1, []byte{0, 0, 0, 2}),
		"data of no stream":                 raw(http2.FrameData, 0, 0, nil),
		"data of a stream that is not ours": raw(http2.FrameData, 0, 2, nil),
		"data of a stream not opened":       raw(http2.FrameData, 0, 99, nil),
		"data before headers":               raw(http2.FrameData, 0, 1, []byte("x")),
		"padding beyond the end":            func(p *peer) { p.ok(1); raw(http2.FrameData, flagPadded, 1, []byte{9, 1})(p) },
		"padding of nothing":                func(p *peer) { p.ok(1); raw(http2.FrameData, flagPadded, 1, nil)(p) },
		"headers of no stream":              raw(http2.FrameHeaders, flagEndHeaders, 0, nil),
		"headers that cannot be decoded":    raw(http2.FrameHeaders, flagEndHeaders, 1, []byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}),
		"headers shorter than a priority":   raw(http2.FrameHeaders, flagEndHeaders|flagPriority, 1, []byte{1}),
		"headers that are interrupted":      func(p *peer) { raw(http2.FrameHeaders, 0, 1, nil)(p); raw(http2.FramePing, 0, 0, make([]byte, 8))(p) },
		"a continuation of nothing":         raw(http2.FrameContinuation, flagEndHeaders, 1, nil),
		"a continuation of another stream":  func(p *peer) { raw(http2.FrameHeaders, 0, 1, nil)(p); raw(http2.FrameContinuation, 0, 3, nil)(p) },
		"continuations without end": func(p *peer) {
			raw(http2.FrameHeaders, 0, 1, nil)(p)
			for range 10 {
				raw(http2.FrameContinuation, 0, 1, make([]byte, maxFrame))(p)
			}
		},
		"headers that unpack to a lot": func(p *peer) {
			block := p.block(":status", "200", "x", strings.Repeat("y", 3000))
			for range 20 {
				block = append(block, p.block("x", strings.Repeat("y", 3000))...) // one byte each
			}
			_ = p.fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: block, EndHeaders: true})
		},
		"a malformed PING":          raw(http2.FramePing, 0, 0, []byte{1}),
		"a malformed RST_STREAM":    raw(http2.FrameRSTStream, 0, 1, []byte{1}),
		"a malformed GOAWAY":        raw(http2.FrameGoAway, 0, 0, []byte{1}),
		"malformed SETTINGS":        raw(http2.FrameSettings, 0, 0, []byte{1}),
		"SETTINGS of a stream":      raw(http2.FrameSettings, 0, 1, nil),
		"an acknowledgement of":     raw(http2.FrameSettings, flagAck, 0, make([]byte, 6)),
		"a window that cannot be":   raw(http2.FrameSettings, 0, 0, []byte{0, 4, 0xff, 0xff, 0xff, 0xff}),
		"a malformed WINDOW_UPDATE": raw(http2.FrameWindowUpdate, 0, 0, []byte{1}),
		"a window that grows by 0":  raw(http2.FrameWindowUpdate, 0, 1, []byte{0, 0, 0, 0}),
		"a window that overflows":   raw(http2.FrameWindowUpdate, 0, 0, []byte{0x7f, 0xff, 0xff, 0xff}),
		"a compressed message":      func(p *peer) { p.ok(1).data(1, []byte{1, 0, 0, 0, 1, 'x'}) },
		"a message beyond the cap":  func(p *peer) { p.ok(1).data(1, []byte{0, 0, 0, 0, 101}) },
		"a message of 4 GiB":        func(p *peer) { p.ok(1).data(1, []byte{0, 0xff, 0xff, 0xff, 0xff}) },
		"messages by the thousand":  func(p *peer) { p.ok(1).data(1, make([]byte, 5*1000)) },
	} {
		t.Run(name, func(t *testing.T) {
			p := newPeer().settings()
			bend(p)
			_, _, err := play(t, p.b.Bytes(), 1<<20, 100)
			var broken *ProtocolError
			if !errors.As(err, &broken) {
				t.Errorf("it ended with %v", err)
			}
		})
	}
}

func TestADeadlineChangesNothing(t *testing.T) {
	p := newPeer().settings().ok(1).data(1, grpcFrame([]byte("hello")))
	raw := p.b.Bytes()
	s := &late{script{in: raw, step: 5}, 0}
	c, err := newConn(s, 100)
	if err != nil {
		t.Fatal(err)
	}
	defer c.close()
	if _, err := c.call("/one", nil, false); err != nil {
		t.Fatal(err)
	}
	waits := 0
	for {
		e, err := c.next()
		if errors.Is(err, os.ErrDeadlineExceeded) {
			waits++
			continue
		}
		if err != nil || string(e.message.Bytes()) != "hello" {
			t.Fatalf("%v, %v", e, err)
		}
		e.message.Close()
		break
	}
	if waits < len(raw)/5 {
		t.Errorf("%d waits", waits)
	}
}

// late times out before every read.
type late struct {
	script
	n int
}

func (l *late) Read(p []byte) (int, error) {
	if l.n++; l.n%2 == 1 {
		return 0, os.ErrDeadlineExceeded
	}
	return l.script.Read(p)
}

func TestMessagesAreReadAsTheLibraryWritesThem(t *testing.T) {
	d, other := pkitest.New(t, "example.org", nil), pkitest.New(t, "other.example", nil)
	d.Federate(other)
	r := fakeapi.X509(t, d, d.Issue("/a", nil), d.Issue("/b", nil))
	r.Svids[1].Hint = "external"
	raw, err := proto.Marshal(r)
	if err != nil {
		t.Fatal(err)
	}
	raw = append(raw, 0x98, 0x06, 0x01) // field 99, of a newer version
	a, sizes, err := parseX509(raw)
	if err != nil {
		t.Fatal(err)
	}
	if len(a.SVIDs) != 2 || a.SVIDs[1].Hint != "external" || a.SVIDs[1].ID != d.ID("/b") || len(a.CRLs) != len(r.Crl) || len(a.Roots) != 2 || len(a.Roots[other.TrustDomain]) != 1 {
		t.Errorf("%+v", a)
	}
	var inPEM int
	count := func(label string, ders ...[]byte) {
		for _, der := range ders {
			inPEM += len(pem.EncodeToMemory(&pem.Block{Type: label, Bytes: der}))
		}
	}
	for n, item := range r.Svids {
		for _, c := range a.SVIDs[n].Certificates {
			count("CERTIFICATE", c.Raw)
		}
		count("PRIVATE KEY", item.X509SvidKey)
		count("CERTIFICATE", a.Roots[d.TrustDomain][0].Raw)
	}
	count("CERTIFICATE", a.Roots[other.TrustDomain][0].Raw)
	count("X509 CRL", r.Crl...)
	if sizes.Wire != len(raw) || sizes.PEM != inPEM || sizes.DER >= sizes.PEM || sizes.DER >= sizes.Wire {
		t.Errorf("sizes %+v; in PEM it is %d", sizes, inPEM)
	}
	clear(raw) // nothing may alias it
	if a.SVIDs[0].ID != d.ID("/a") || a.CRLs[0][0] != 0x30 || a.SVIDs[0].Certificates[0].Raw[0] != 0x30 || a.Roots[d.TrustDomain][0].Raw[0] != 0x30 {
		t.Error("the answer changed with the buffer it came in")
	}

	set := &workloadv1.RevocationSet{Revocations: []*workloadv1.Revocation{
		{SpiffeId: "spiffe://example.org/a", Serials: []string{"1", "ff"}, Reason: "lost", RevokedAtUnixNano: time.Now().UnixNano()}, {Serials: []string{"2"}},
	}}
	if raw, err = proto.Marshal(set); err != nil {
		t.Fatal(err)
	}
	all, err := parseRevocations(raw)
	if err != nil || len(all) != 2 {
		t.Fatalf("%v, %v", all, err)
	}
	for n, want := range set.Revocations {
		if got := all[n]; got.SPIFFEID != want.SpiffeId || !slices.Equal(got.Serials, want.Serials) || got.Reason != want.Reason || n == 0 && got.At.UnixNano() != want.RevokedAtUnixNano {
			t.Errorf("%+v, want %v", got, want)
		}
	}
}

func TestAnswersThatMakeNoSense(t *testing.T) {
	d := pkitest.New(t, "example.org", nil)
	for name, bend := range map[string]func(*workload.X509SVIDResponse){
		"no SVID":              func(r *workload.X509SVIDResponse) { r.Svids = nil },
		"a broken certificate": func(r *workload.X509SVIDResponse) { r.Svids[0].X509Svid = []byte("junk") },
		"no key":               func(r *workload.X509SVIDResponse) { r.Svids[0].X509SvidKey = nil },
		"another key": func(r *workload.X509SVIDResponse) {
			r.Svids[0].X509SvidKey = fakeapi.X509(t, d, d.Issue("/a", nil)).Svids[0].X509SvidKey
		},
		"an ID that the certificate is not": func(r *workload.X509SVIDResponse) { r.Svids[0].SpiffeId = "spiffe://example.org/b" },
		"a broken bundle":                   func(r *workload.X509SVIDResponse) { r.Svids[0].Bundle = []byte("junk") },
		"a federated bundle of no domain":   func(r *workload.X509SVIDResponse) { r.FederatedBundles = map[string][]byte{"Ex ample": nil} },
		// A37: federation never supplies our own domain's roots.
		"a federated bundle of our own domain": func(r *workload.X509SVIDResponse) {
			r.FederatedBundles = map[string][]byte{"spiffe://example.org": r.Svids[0].Bundle}
		},
		"a list for every day of three years": func(r *workload.X509SVIDResponse) { r.Crl = make([][]byte, 1100) },
	} {
		t.Run(name, func(t *testing.T) {
			r := fakeapi.X509(t, d, d.Issue("/a", nil))
			bend(r)
			raw, err := proto.Marshal(r)
			if err != nil {
				t.Fatal(err)
			}
			if _, _, err := parseX509(raw); err == nil {
				t.Error("it was taken")
			}
		})
	}
	raw, _ := proto.Marshal(fakeapi.X509(t, d, d.Issue("/a", nil)))
	for n := 1; n < len(raw); n += 7 {
		if _, _, err := parseX509(raw[:n]); err == nil && n < 200 {
			t.Errorf("an answer cut after %d bytes was taken", n)
		}
	}
}

// sdsResponse is an answer with these secrets.
func sdsResponse(t testing.TB, secrets ...*tlsv3.Secret) []byte {
	r := &discoveryv3.DiscoveryResponse{VersionInfo: "7", Nonce: "n1", TypeUrl: typeSecret}
	for _, s := range secrets {
		a, err := anypb.New(s)
		if err != nil {
			t.Fatal(err)
		}
		r.Resources = append(r.Resources, a)
	}
	raw, err := proto.Marshal(r)
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

func inlineSource(label string, ders ...[]byte) *corev3.DataSource {
	var b []byte
	for _, der := range ders {
		b = append(b, pem.EncodeToMemory(&pem.Block{Type: label, Bytes: der})...)
	}
	return &corev3.DataSource{Specifier: &corev3.DataSource_InlineBytes{InlineBytes: b}}
}

// sdsSecrets are the secrets that an agent has for one certificate.
func sdsSecrets(t testing.TB, d *pkitest.Domain, name string) []*tlsv3.Secret {
	cert := d.Issue("/a", nil)
	r := fakeapi.X509(t, d, cert)
	var roots [][]byte
	for _, c := range d.Trust().Roots[d.TrustDomain] {
		roots = append(roots, c.Raw)
	}
	return []*tlsv3.Secret{
		{Name: name, Type: &tlsv3.Secret_TlsCertificate{TlsCertificate: &tlsv3.TlsCertificate{
			CertificateChain: inlineSource("CERTIFICATE", cert.Certificate...), PrivateKey: inlineSource("PRIVATE KEY", r.Svids[0].X509SvidKey)}}},
		{Name: "ROOTCA", Type: &tlsv3.Secret_ValidationContext{ValidationContext: &tlsv3.CertificateValidationContext{
			TrustedCa: inlineSource("CERTIFICATE", roots...), Crl: inlineSource("X509 CRL", d.CRLs()...)}}},
	}
}

func TestSecretsComeTogetherOrOneByOne(t *testing.T) {
	d := pkitest.New(t, "example.org", nil)
	all := sdsSecrets(t, d, "default")
	for name, responses := range map[string][][]byte{
		"together":            {sdsResponse(t, all...)},
		"one by one":          {sdsResponse(t, all[0]), sdsResponse(t, all[1])},
		"the other way round": {sdsResponse(t, all[1]), sdsResponse(t, all[0])},
		"with others":         {sdsResponse(t, sdsSecrets(t, d, "someone else's")[0], all[0]), sdsResponse(t, all[1])},
	} {
		t.Run(name, func(t *testing.T) {
			s := &secrets{}
			defer s.close()
			for n, raw := range responses {
				version, nonce, err := s.response(raw)
				if err != nil || version != "7" || nonce != "n1" {
					t.Fatalf("%q %q %v", version, nonce, err)
				}
				if s.whole() != (n == len(responses)-1) {
					t.Fatalf("whole after %d responses: %t", n+1, s.whole())
				}
			}
			var sizes Sizes
			a, err := s.answer(&sizes)
			if err != nil {
				t.Fatal(err)
			}
			if a.SVIDs[0].ID != d.ID("/a") || len(a.Roots[d.TrustDomain]) != 1 || len(a.CRLs) != len(d.CRLs()) || sizes.DER == 0 {
				t.Errorf("%+v", a)
			}
			// A new bundle alone is a new answer with the same key.
			if _, _, err := s.response(sdsResponse(t, all[1])); err != nil {
				t.Fatal(err)
			}
			if _, err := s.answer(&sizes); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestTheSDSRequestIsAsTheLibraryReadsIt(t *testing.T) {
	r := &discoveryv3.DiscoveryRequest{}
	if err := proto.Unmarshal(SDS{}.request("7", "n1"), r); err != nil {
		t.Fatal(err)
	}
	if r.TypeUrl != typeSecret || r.VersionInfo != "7" || r.ResponseNonce != "n1" || r.Node.GetId() == "" || !slices.Equal(r.ResourceNames, []string{"default", "ROOTCA"}) {
		t.Errorf("%v", r)
	}
}

// FuzzConnection: whatever a peer sends, nothing panics, no message is longer
// than allowed, and it ends.
func FuzzConnection(f *testing.F) {
	p := newPeer().settings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 1 << 20})
	_ = p.fr.WritePing(false, [8]byte{})
	p.ok(1).data(1, grpcFrame([]byte("hello"))).status(1, "0", "")
	f.Add(p.b.Bytes(), 3)
	p = newPeer().settings()
	block := p.block(":status", "200", "content-type", "application/grpc")
	_ = p.fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 3, BlockFragment: block[:2]})
	_ = p.fr.WriteContinuation(3, true, block[2:])
	_ = p.fr.WriteDataPadded(3, true, grpcFrame([]byte("x")), make([]byte, 3))
	_ = p.fr.WriteGoAway(0, http2.ErrCodeNo, nil)
	_ = p.fr.WriteRSTStream(1, http2.ErrCodeCancel)
	_ = p.fr.WriteWindowUpdate(0, 5)
	f.Add(p.b.Bytes(), 1000)
	f.Fuzz(func(t *testing.T, raw []byte, step int) {
		c, err := newConn(&script{in: raw, step: step}, 64)
		if err != nil {
			t.Fatal(err)
		}
		defer c.close()
		_, _ = c.call("/one", nil, false)
		_, _ = c.call("/two", nil, false)
		for range 2*len(raw) + 4 {
			e, err := c.next()
			if err != nil {
				return
			}
			if e.message != nil {
				if len(e.message.Bytes()) > 64 {
					t.Errorf("a message of %d bytes", len(e.message.Bytes()))
				}
				e.message.Close()
			}
		}
		t.Error("it does not end")
	})
}

// FuzzX509Response: what is taken is what the library reads.
func FuzzX509Response(f *testing.F) {
	d := pkitest.New(f, "example.org", nil)
	raw, _ := proto.Marshal(fakeapi.X509(f, d, d.Issue("/a", nil)))
	f.Add(raw)
	f.Add([]byte{0x0a, 0x00})
	f.Fuzz(func(t *testing.T, raw []byte) {
		a, _, err := parseX509(bytes.Clone(raw))
		if err != nil {
			return
		}
		r := &workload.X509SVIDResponse{}
		if err := proto.Unmarshal(raw, r); err != nil {
			t.Fatalf("taken, though the library refuses it: %v", err)
		}
		if len(r.Svids) != len(a.SVIDs) || len(r.Crl) != len(a.CRLs) {
			t.Errorf("%d SVIDs and %d lists, the library reads %d and %d", len(a.SVIDs), len(a.CRLs), len(r.Svids), len(r.Crl))
		}
		for n, s := range r.Svids {
			if a.SVIDs[n].ID.String() != s.SpiffeId {
				t.Errorf("SVID %d is of %s, the library reads %s", n, a.SVIDs[n].ID, s.SpiffeId)
			}
		}
	})
}

func FuzzRevocationSet(f *testing.F) {
	raw, _ := proto.Marshal(&workloadv1.RevocationSet{Revocations: []*workloadv1.Revocation{{SpiffeId: "spiffe://a/b", Serials: []string{"1"}, Reason: "x", RevokedAtUnixNano: 5}}})
	f.Add(raw)
	f.Fuzz(func(t *testing.T, raw []byte) {
		all, err := parseRevocations(raw)
		if err != nil {
			return
		}
		set := &workloadv1.RevocationSet{}
		if proto.Unmarshal(raw, set) == nil && len(set.Revocations) != len(all) {
			t.Errorf("%d revocations, the library reads %d", len(all), len(set.Revocations))
		}
	})
}

func FuzzSDSResponse(f *testing.F) {
	d := pkitest.New(f, "example.org", nil)
	f.Add(sdsResponse(f, sdsSecrets(f, d, "default")...))
	f.Fuzz(func(t *testing.T, raw []byte) {
		s := &secrets{}
		defer s.close()
		if _, _, err := s.response(raw); err == nil && s.whole() {
			_, _ = s.answer(&Sizes{})
		}
	})
}
