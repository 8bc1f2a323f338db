package handshake

import (
	"crypto/tls"
	"errors"
	"net"
	"strconv"
	"strings"
)

const alertUserCanceled = tls.AlertError(90)

// remoteAlert finds the alert that the peer sent. crypto/tls gives it as a
// net.OpError around a type of its own, which prints as tls.AlertError does.
func remoteAlert(err error) (tls.AlertError, bool) {
	op, ok := errors.AsType[*net.OpError](err)
	if !ok || op.Op != "remote error" || op.Err == nil {
		return 0, false
	}
	return alertByText(op.Err.Error())
}

// alertError is an alert as crypto/tls gives it.
func alertError(a tls.AlertError) error { return &net.OpError{Op: "remote error", Err: a} }

func alertByText(text string) (tls.AlertError, bool) {
	n, ok := alerts[text]
	return n, ok
}

// alerts is crypto/tls's own table, read through its only exported door.
var alerts = func() map[string]tls.AlertError {
	m := make(map[string]tls.AlertError, 256)
	for n := range 256 {
		m[tls.AlertError(n).Error()] = tls.AlertError(n)
	}
	return m
}()

func alertName(a tls.AlertError) string {
	return strconv.Quote(strings.TrimPrefix(a.Error(), "tls: ")) + " (" + strconv.Itoa(int(a)) + ")"
}

// A refusal is what an alert from the peer means to us.
type refusal struct {
	cause Cause
	own   bool // it is about our certificate
	hint  string
}

// refusals: RFC 8446 6.2 and RFC 5246 7.2.2, and what the implementations that
// we meet send in practice.
var refusals = map[tls.AlertError]refusal{
	10:  {Protocol, false, "this side sent a message that the peer did not expect"},
	20:  {Protocol, false, "what arrived there was not what was sent: a middlebox, or a broken implementation"},
	21:  {Protocol, false, ""},
	22:  {Protocol, false, ""},
	30:  {Protocol, false, ""},
	40:  {CipherSuite, false, "the two sides have no cipher suite, group or signature algorithm in common"},
	42:  {Rejected, true, "it does not say why; a peer that is written in Go sends this alert whatever it found: its log has the reason"},
	43:  {BadUsage, true, "the certificate is not made for this use (extended key usage), or its key is of a type that the peer cannot use"},
	44:  {Revoked, true, "the certificate was taken back; a new one is needed"},
	45:  {Expired, true, "the certificate, one of its issuers or a revocation list ended, by the peer's clock"},
	46:  {Rejected, true, "it does not say why; Envoy sends this alert when no name of the certificate is on its list"},
	47:  {Protocol, false, ""},
	48:  {UnknownCA, true, "the peer has no root that leads to the certificate, or the chain that was sent lacks an intermediate"},
	49:  {Unauthorized, true, "the certificate is genuine, and may not talk to this peer"},
	50:  {Protocol, false, ""},
	51:  {BadProof, true, "a signature did not verify there: does the private key belong to the certificate"},
	60:  {CipherSuite, false, ""},
	70:  {ProtocolVersion, false, "the peer accepts none of the TLS versions that are spoken here"},
	71:  {CipherSuite, false, "the peer wants stronger parameters than are offered here"},
	80:  {PeerInternal, false, "the peer had an error of its own, e.g. no certificate yet: its log has the reason"},
	86:  {ProtocolVersion, false, ""},
	90:  {Closed, false, ""},
	100: {Protocol, false, ""},
	109: {Protocol, false, ""},
	110: {Protocol, false, ""},
	111: {Protocol, false, ""},
	112: {UnknownServerName, false, "the peer has no certificate for the server name that was asked for"},
	113: {RevocationUnknown, true, "the stapled OCSP response is not acceptable to the peer"},
	114: {Protocol, false, ""},
	115: {Resumption, false, ""},
	116: {NoCertificate, true, "the peer wants a client certificate, and none was sent"},
	120: {ALPN, false, "the peer speaks none of the application protocols that were offered"},
	121: {Protocol, false, "the peer wants encrypted client hello"},
}
