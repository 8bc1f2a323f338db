package mtls

import (
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"slices"

	"github.com/legation-io/legation/sdk/handshake"
	"github.com/legation-io/legation/sdk/internal/suites"
)

// Profile is which TLS versions, cipher suites and key exchange groups a side
// offers, and accepts on each connection by what was in fact agreed on. There
// is none in which a session is resumed.
type Profile int

const (
	// Default is TLS 1.3 with any of its suites (AES-128-GCM, AES-256-GCM,
	// ChaCha20-Poly1305; RFC 8446 B.4); X25519MLKEM768 is preferred, and
	// X25519, P-256 and P-384, alone or in a hybrid, are accepted.
	Default Profile = iota
	// Strict is Default with TLS_AES_256_GCM_SHA384 only. A tls.Config cannot
	// choose a TLS 1.3 suite: the program imports sdk/aes256gcm, which is
	// process-wide, for both of its sides to offer nothing else. Whatever is
	// offered, a connection with another suite is refused.
	Strict
	// Constrained is Default and, for small machines, TLS 1.2 (RFC 5246) as
	// Constrained of sdk/light speaks it: ECDHE with an ECDSA certificate and
	// AES-GCM (RFC 5289 3.2). What TLS 1.2 costs is said there.
	Constrained
)

// String is the profile's name.
func (p Profile) String() string {
	switch p {
	case Default:
		return "default"
	case Strict:
		return "strict"
	case Constrained:
		return "constrained"
	}
	return fmt.Sprintf("Profile(%d)", int(p))
}

// rules are a profile, spelled out.
type rules struct {
	profile  Profile
	min      uint16
	suites12 []uint16      // TLS 1.2
	suites13 []uint16      // TLS 1.3
	groups   []tls.CurveID // best first; crypto/tls has its own order
}

var (
	allGroups = []tls.CurveID{tls.X25519MLKEM768, tls.SecP256r1MLKEM768, tls.SecP384r1MLKEM1024, tls.X25519, tls.CurveP256, tls.CurveP384}
	all13     = []uint16{tls.TLS_AES_128_GCM_SHA256, tls.TLS_AES_256_GCM_SHA384, tls.TLS_CHACHA20_POLY1305_SHA256}

	defaultRules     = rules{profile: Default, min: tls.VersionTLS13, suites13: all13, groups: allGroups}
	strictRules      = rules{profile: Strict, min: tls.VersionTLS13, suites13: []uint16{tls.TLS_AES_256_GCM_SHA384}, groups: allGroups}
	constrainedRules = rules{profile: Constrained, min: tls.VersionTLS12, suites13: all13, groups: allGroups, suites12: suites.TLS12}
)

func (p Profile) rules() (*rules, error) {
	switch p {
	case Default:
		return &defaultRules, nil
	case Strict:
		if !suites.Active() {
			return nil, errors.New(`Profile Strict offers AES-256-GCM only, which this program does not: add import _ "github.com/legation-io/legation/sdk/aes256gcm" ` +
				`to it (process-wide); if that is there, this version of Go no longer lets the suite be chosen`)
		}
		return &strictRules, nil
	case Constrained:
		return &constrainedRules, nil
	}
	return nil, fmt.Errorf("%s is no profile: set Default, Strict or Constrained", p)
}

// check refuses what the profile does not allow. A client of TLS 1.2 learns the
// group after it has verified the server, and is checked again at the end.
func (r *rules) check(cs *tls.ConnectionState) error {
	switch allowed := r.suites13; {
	case cs.Version != tls.VersionTLS13 && (r.min > tls.VersionTLS12 || cs.Version != tls.VersionTLS12):
		return r.refuse(cs, whatVersion, tls.VersionName(cs.Version))
	case cs.DidResume:
		return r.refuse(cs, whatSession, "a resumed one, which skips the peer's certificate,")
	default:
		if cs.Version == tls.VersionTLS12 {
			allowed = r.suites12
		}
		if !slices.Contains(allowed, cs.CipherSuite) {
			return r.refuse(cs, whatSuite, tls.CipherSuiteName(cs.CipherSuite))
		}
		if late := cs.Version == tls.VersionTLS12 && !cs.HandshakeComplete && cs.CurveID == 0; !late && !slices.Contains(r.groups, cs.CurveID) {
			return r.refuse(cs, whatGroup, cs.CurveID.String())
		}
	}
	return nil
}

func (r *rules) refuse(cs *tls.ConnectionState, what, value string) error {
	return &ProfileError{Profile: r.profile, What: what, Value: value, Negotiated: NegotiatedOf(cs)}
}

// ProfileError is a connection that agreed on something that the profile does
// not allow.
type ProfileError struct {
	Profile Profile
	// What was refused: "version", "session", "cipher suite", "group" or
	// "application protocol"; and its name.
	What, Value string
	// Negotiated is all that was agreed on.
	Negotiated Negotiated
}

// Error implements error.
func (e *ProfileError) Error() string {
	return fmt.Sprintf("%s %s is not allowed by the %s profile (agreed on: %s)", e.What, e.Value, e.Profile, e.Negotiated)
}

const (
	whatVersion  = "version"
	whatSession  = "session"
	whatSuite    = "cipher suite"
	whatGroup    = "group"
	whatProtocol = "application protocol"
)

func (e *ProfileError) cause() handshake.Cause {
	switch e.What {
	case whatVersion:
		return handshake.ProtocolVersion
	case whatSession:
		return handshake.Resumption
	case whatGroup:
		return handshake.KeyExchange
	case whatProtocol:
		return handshake.ALPN
	}
	return handshake.CipherSuite
}

// Negotiated is what the two sides of a connection agreed on, by the names of
// the standards.
type Negotiated struct {
	Version  string // "TLS 1.3"
	Suite    string // "TLS_AES_256_GCM_SHA384"
	Group    string // "X25519MLKEM768"
	Protocol string // ALPN, "h2"; empty without
}

// NegotiatedOf reads it from a connection's state.
func NegotiatedOf(cs *tls.ConnectionState) Negotiated {
	return Negotiated{tls.VersionName(cs.Version), tls.CipherSuiteName(cs.CipherSuite), cs.CurveID.String(), cs.NegotiatedProtocol}
}

// String is all of it in one line.
func (n Negotiated) String() string {
	s := n.Version + " " + n.Suite + " " + n.Group
	if n.Protocol != "" {
		s += " " + n.Protocol
	}
	return s
}

// LogValue implements slog.LogValuer.
func (n Negotiated) LogValue() slog.Value {
	return slog.GroupValue(slog.String("version", n.Version), slog.String("suite", n.Suite), slog.String("group", n.Group), slog.String("protocol", n.Protocol))
}
