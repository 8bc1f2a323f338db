package envoy

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	datav3 "github.com/envoyproxy/go-control-plane/envoy/data/accesslog/v3"

	"github.com/legation-io/legation/internal/accesslog"
)

// maxText bounds what is kept of a text that Envoy or, through it, a peer
// wrote.
const maxText = 512

func clip(s string) string {
	if len(s) > maxText {
		return strings.ToValidUTF8(s[:maxText], "")
	}
	return s
}

// tag reads a custom tag; Envoy writes "-" for what it does not know.
func tag(c *datav3.AccessLogCommon, name string) string {
	if v := c.GetCustomTags()[name]; v != "-" {
		return clip(v)
	}
	return ""
}

func addrPort(a *corev3.Address) netip.AddrPort {
	s := a.GetSocketAddress()
	ip, err := netip.ParseAddr(s.GetAddress())
	if err != nil || s.GetPortValue() > 65535 {
		return netip.AddrPort{}
	}
	return unmap(netip.AddrPortFrom(ip, uint16(s.GetPortValue())))
}

// Serial is how serials are compared: lower-case hex without leading zeros.
// Envoy writes whole bytes.
func Serial(s string) string {
	return strings.TrimLeft(strings.ToLower(strings.ReplaceAll(s, ":", "")), "0")
}

// read makes a Connection from an entry of one of our logs.
func read(direction Direction, e *datav3.TCPAccessLogEntry) *Connection {
	p := e.GetCommonProperties()
	c := &Connection{
		ID: clip(p.GetStreamId()), Direction: direction,
		Local:       addrPort(p.GetDownstreamLocalAddress()),
		Destination: addrPort(p.GetDownstreamLocalAddress()),
		Remote:      addrPort(p.GetDownstreamDirectRemoteAddress()),
		Since:       p.GetStartTime().AsTime(),

		UpstreamLocal:   addrPort(p.GetUpstreamLocalAddress()),
		UpstreamRemote:  addrPort(p.GetUpstreamRemoteAddress()),
		UpstreamCluster: clip(p.GetUpstreamCluster()),
	}
	if local, err := netip.ParseAddrPort(tag(p, accesslog.TagDirectLocal)); err == nil {
		c.Local = unmap(local)
	}
	if emitted, ok := unixMicros(tag(p, accesslog.TagEmitted)); ok && emitted.After(c.Since) {
		c.Ready = emitted.Sub(c.Since)
	}
	if direction == Outbound {
		c.PeerID = tag(p, accesslog.TagUpstreamURI)
		c.PeerSerial = certSerial(p.GetCustomTags()[accesslog.TagUpstreamCert])
		c.TLSVersion = tag(p, accesslog.TagUpstreamVersion)
		c.Cipher = tag(p, accesslog.TagUpstreamCipher)
		c.Group = tag(p, accesslog.TagUpstreamGroup)
		return c
	}
	t := p.GetTlsProperties()
	c.SNI = clip(t.GetTlsSniHostname())
	c.PeerSerial = Serial(tag(p, accesslog.TagSerial))
	c.Group = tag(p, accesslog.TagGroup)
	for _, san := range t.GetPeerCertificateProperties().GetSubjectAltName() {
		if uri := san.GetUri(); uri != "" {
			c.PeerID = clip(uri)
			break
		}
	}
	// Before a ServerHello Envoy says TLSv1.2 and cipher 65535.
	if suite := t.GetTlsCipherSuite(); suite != nil && suite.GetValue() != 0xffff {
		c.Cipher = tls.CipherSuiteName(uint16(suite.GetValue()))
		c.TLSVersion = tlsVersions[t.GetTlsVersion()]
	}
	return c
}

var tlsVersions = map[datav3.TLSProperties_TLSVersion]string{
	datav3.TLSProperties_TLSv1:   "TLSv1",
	datav3.TLSProperties_TLSv1_1: "TLSv1.1",
	datav3.TLSProperties_TLSv1_2: "TLSv1.2",
	datav3.TLSProperties_TLSv1_3: "TLSv1.3",
}

// unixMicros reads "seconds.microseconds".
func unixMicros(s string) (time.Time, bool) {
	sec, micro, ok := strings.Cut(s, ".")
	if !ok || len(micro) != 6 {
		return time.Time{}, false
	}
	a, errA := strconv.ParseInt(sec, 10, 64)
	b, errB := strconv.ParseUint(micro, 10, 32)
	if errA != nil || errB != nil {
		return time.Time{}, false
	}
	return time.Unix(a, int64(b)*1000), true
}

// certSerial reads the serial of a URL-encoded PEM certificate. Envoy has no
// formatter for the serial of an upstream certificate.
func certSerial(encoded string) string {
	if len(encoded) < 3 || len(encoded) > 64<<10 {
		return ""
	}
	text, err := url.PathUnescape(encoded)
	if err != nil {
		return ""
	}
	block, _ := pem.Decode([]byte(text))
	if block == nil {
		return ""
	}
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil || cert.SerialNumber == nil {
		return ""
	}
	return cert.SerialNumber.Text(16)
}

// reason is what Envoy says about a failure, as it says it.
func reason(direction Direction, p *datav3.AccessLogCommon) string {
	r := p.GetDownstreamTransportFailureReason()
	if direction == Outbound {
		r = p.GetUpstreamTransportFailureReason()
	}
	if r == "" {
		r = p.GetConnectionTerminationDetails()
	}
	if f := p.GetMetadata().GetFilterMetadata()["envoy.filters.listener.tls_inspector"].GetFields()["failure_reason"].GetStringValue(); f != "" {
		r = strings.TrimSpace(f + " " + r)
	}
	return clip(r)
}
