// Package aes256gcm makes TLS_AES_256_GCM_SHA384 the only suite that this
// process offers and accepts in TLS 1.3 (RFC 8446 B.4). It is imported for
// that alone:
//
//	import _ "github.com/legation-io/legation/sdk/aes256gcm"
//
// It is process-wide: every tls.Config of the program is meant, also those of
// libraries, net/http's default transport among them. A peer that has no
// AES-256-GCM cannot be talked to any more. TLS 1.2, whose suites a tls.Config
// chooses, is left alone. Who must not have that does without the import and
// keeps what sdk/mtls does on each connection: it reports the suite, and
// refuses one that its profile does not allow.
//
// A tls.Config cannot choose the suites of TLS 1.3. Two variables of crypto/tls
// can, whose names and type Go keeps for those that reach them by go:linkname
// (go.dev/issue/67401): defaultCipherSuitesTLS13, and its sibling for peers
// that seem to have no AES in hardware, without which a client that lists
// ChaCha20 first would get it. They are set when the program starts. Should a
// later Go no longer obey, Active says so, which it finds out by trying; and
// should it forbid the reach, the program does not link, rather than run
// with what nobody chose. In FIPS 140-3 mode (GODEBUG=fips140=on) crypto/tls
// has a list of its own with both AES suites, and Active is false.
package aes256gcm

import (
	"crypto/tls"
	_ "unsafe" // for go:linkname

	"github.com/legation-io/legation/sdk/internal/suites"
)

//go:linkname defaultCipherSuitesTLS13 crypto/tls.defaultCipherSuitesTLS13
var defaultCipherSuitesTLS13 []uint16

//go:linkname defaultCipherSuitesTLS13NoAES crypto/tls.defaultCipherSuitesTLS13NoAES
var defaultCipherSuitesTLS13NoAES []uint16

func init() {
	defaultCipherSuitesTLS13 = []uint16{tls.TLS_AES_256_GCM_SHA384}
	defaultCipherSuitesTLS13NoAES = []uint16{tls.TLS_AES_256_GCM_SHA384}
	suites.Register(Active)
}

// Active reports whether crypto/tls obeys: whether a client of this process
// offers AES-256-GCM only, and a server refuses clients that offer it not.
// The first call tries that in memory, in less than a millisecond.
func Active() bool { return obeys() }
