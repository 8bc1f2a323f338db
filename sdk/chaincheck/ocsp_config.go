package chaincheck

import (
	"context"
	"log/slog"
	"time"
)

// A Fetcher asks one OCSP responder. sdk/chaincheck/ocsphttp is one over HTTP
// that reaches only allowed addresses; it is not here, so that who needs no
// fetching links no HTTP client.
type Fetcher interface {
	// Fetch returns the response, DER, at most 64 KiB. It ends with ctx, and
	// follows no redirect.
	Fetch(ctx context.Context, r OCSPRequest) ([]byte, error)
}

// OCSPRequest is one question to one responder.
type OCSPRequest struct {
	// URL is the responder's, as the certificate names it: http.
	URL string
	// DER is the OCSPRequest of RFC 6960 4.1.1.
	DER []byte
	// Nonce tells that DER has one, so no cache on the way can answer it, and
	// it is to be sent by POST (RFC 9654 3).
	Nonce bool
}

// NonceMode says how answers are tied to questions (RFC 9654).
type NonceMode int

// The modes.
const (
	// NonceSend asks with a nonce. An answer without one counts by its dates,
	// since many public responders sign ahead (RFC 5019 4); a wrong one is
	// refused. The default.
	NonceSend NonceMode = iota
	// NonceRequire refuses answers without the nonce.
	NonceRequire
	// NonceOff asks as RFC 5019 describes, so that caches can answer. A nonce
	// in the answer is refused.
	NonceOff
)

// OCSPConfig is how responders are asked. Its zero value asks nobody.
type OCSPConfig struct {
	// Fetcher does the asking; nil asks nobody.
	Fetcher Fetcher
	// Timeout is how long one verification waits for answers, all links
	// together; zero is 2 s. An answer that comes later serves the next one.
	Timeout time.Duration
	// FetchTimeout ends one exchange with all responders of a certificate;
	// zero is 5 s.
	FetchTimeout time.Duration
	// MaxEntries bounds the certificates of which an answer, or a failure, is
	// remembered; zero is 4096.
	MaxEntries int
	// MaxFetches bounds the exchanges under way; zero is 16. Beyond, a
	// verification goes on without an answer.
	MaxFetches int
	Nonce      NonceMode
	// SHA256 names certificates by SHA-256 instead of SHA-1, which every
	// responder understands. Answers are understood either way.
	SHA256 bool
	// Now is wall time; nil is time.Now. Timeouts run in real time.
	Now func() time.Time
	// Logger is told of failed exchanges and of revocations learned; nil is
	// slog.Default().
	Logger *slog.Logger
}
