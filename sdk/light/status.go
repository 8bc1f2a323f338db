package light

import (
	"fmt"
	"strconv"
	"strings"
	"unicode/utf8"
)

// Code is a gRPC status code.
type Code int

// The codes that matter here.
const (
	CodeInvalidArgument   Code = 3
	CodePermissionDenied  Code = 7
	CodeResourceExhausted Code = 8
	CodeUnimplemented     Code = 12
	CodeInternal          Code = 13
	CodeUnavailable       Code = 14
	CodeUnknown           Code = 2
)

var codeNames = [...]string{"OK", "Canceled", "Unknown", "InvalidArgument", "DeadlineExceeded", "NotFound", "AlreadyExists", "PermissionDenied",
	"ResourceExhausted", "FailedPrecondition", "Aborted", "OutOfRange", "Unimplemented", "Internal", "Unavailable", "DataLoss", "Unauthenticated"}

// String is gRPC's name of the code.
func (c Code) String() string {
	if c < 0 || int(c) >= len(codeNames) {
		return "Code(" + strconv.Itoa(int(c)) + ")"
	}
	return codeNames[c]
}

// StatusError is how the Workload API ended a call.
type StatusError struct {
	Code    Code
	Message string
}

// Error implements error.
func (e *StatusError) Error() string { return fmt.Sprintf("%s: %s", e.Code, e.Message) }

// maxMessageText bounds what a server may put into an error.
const maxMessageText = 1024

// percentDecoded reads grpc-message: percent-encoded UTF-8. What is not
// decodable stays as it is (gRPC over HTTP/2, "Status-Message").
func percentDecoded(s string) string {
	var b strings.Builder
	for i := 0; i < len(s) && b.Len() < maxMessageText; i++ {
		if s[i] == '%' && i+2 < len(s) {
			if v, err := strconv.ParseUint(s[i+1:i+3], 16, 8); err == nil {
				b.WriteByte(byte(v))
				i += 2
				continue
			}
		}
		b.WriteByte(s[i])
	}
	out := b.String()
	if !utf8.ValidString(out) {
		out = strings.ToValidUTF8(out, "�")
	}
	return out
}

// resetCode is what a stream's reset means, gRPC over HTTP/2, "Errors".
func resetCode(h2 uint32) Code {
	switch h2 {
	case 0x7: // REFUSED_STREAM
		return CodeUnavailable
	case 0x8: // CANCEL
		return 1
	case 0xb: // ENHANCE_YOUR_CALM
		return CodeResourceExhausted
	case 0xc: // INADEQUATE_SECURITY
		return CodePermissionDenied
	}
	return CodeInternal
}
