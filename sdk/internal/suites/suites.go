// Package suites lets sdk/aes256gcm tell sdk/mtls that it is in the program,
// without sdk/mtls importing it: its import alone changes the process.
package suites

import "sync/atomic"

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
