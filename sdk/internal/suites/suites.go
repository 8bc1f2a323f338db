// Package suites is what the packages that speak TLS agree on about cipher
// suites. It lets sdk/aes256gcm tell sdk/mtls that it is in the program, without
// sdk/mtls importing it: its import alone changes the process.
package suites

import (
	"crypto/tls"
	"sync/atomic"
)

// TLS12 are the suites of the constrained profiles of sdk/light and sdk/mtls in
// TLS 1.2: ECDHE with an ECDSA certificate and AES-GCM (RFC 5289 3.2). Not to be
// changed.
var TLS12 = []uint16{tls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256, tls.TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384}

var active atomic.Pointer[func() bool]

// Register is called by the package that restricts the suites; f reports
// whether crypto/tls obeys.
func Register(f func() bool) { active.Store(&f) }

// Active reports whether crypto/tls offers and accepts AES-256-GCM only among
// the suites of TLS 1.3.
func Active() bool {
	f := active.Load()
	return f != nil && (*f)()
}
