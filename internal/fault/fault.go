// Package fault names the few kinds of error a caller can act on. Deciders
// and outlets return them; each door maps them to its protocol once (gRPC
// code, exit code). An error without a kind is Internal.
package fault

import (
	"context"
	"errors"
	"fmt"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// Kind says what the caller can do about an error.
type Kind string

// The kinds.
const (
	Internal    Kind = "internal"    // ours to mend; details are logged, not shown
	Invalid     Kind = "invalid"     // the input is wrong and says where
	Denied      Kind = "denied"      // the caller may not
	NotFound    Kind = "not_found"   // nothing has that name
	Conflict    Kind = "conflict"    // the name is taken, or the race was lost
	Limited     Kind = "limited"     // over a limit; try later
	Unavailable Kind = "unavailable" // cannot be answered now; try again
)

// Error is an error with a kind. Its message is safe to show to the caller.
type Error struct {
	Kind    Kind
	Message string
	Err     error // the cause, for logs and errors.Is; may be nil
}

func (e *Error) Error() string { return e.Message }
func (e *Error) Unwrap() error { return e.Err }

// New returns an error of a kind. The format may wrap a cause with %w; the
// whole message is shown to the caller.
func New(kind Kind, format string, args ...any) error {
	err := fmt.Errorf(format, args...)
	return &Error{Kind: kind, Message: err.Error(), Err: errors.Unwrap(err)}
}

// KindOf returns the kind of the outermost Error in err's chain. A cancelled
// or expired context is Unavailable; a gRPC status is translated back.
func KindOf(err error) Kind {
	var f *Error
	if errors.As(err, &f) {
		return f.Kind
	}
	if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return Unavailable
	}
	if s, ok := status.FromError(err); ok && err != nil {
		for kind, code := range grpcCodes {
			if code == s.Code() {
				return kind
			}
		}
		if s.Code() == codes.DeadlineExceeded || s.Code() == codes.Canceled {
			return Unavailable
		}
	}
	return Internal
}

// Is reports whether err is of the kind.
func Is(err error, kind Kind) bool { return err != nil && KindOf(err) == kind }

var grpcCodes = map[Kind]codes.Code{
	Internal:    codes.Internal,
	Invalid:     codes.InvalidArgument,
	Denied:      codes.PermissionDenied,
	NotFound:    codes.NotFound,
	Conflict:    codes.AlreadyExists,
	Limited:     codes.ResourceExhausted,
	Unavailable: codes.Unavailable,
}

// GRPC maps an error to a gRPC status error. The text of an Internal error
// stays in the log of the door that calls this; the caller reads "internal
// error".
func GRPC(err error) error {
	if err == nil {
		return nil
	}
	var f *Error
	if !errors.As(err, &f) {
		if s, ok := status.FromError(err); ok {
			return s.Err()
		}
		if errors.Is(err, context.Canceled) {
			return status.Error(codes.Canceled, "the call was cancelled")
		}
		if errors.Is(err, context.DeadlineExceeded) {
			return status.Error(codes.DeadlineExceeded, "the deadline passed")
		}
		return status.Error(codes.Internal, "internal error; the server's log says more")
	}
	if f.Kind == Internal {
		return status.Error(codes.Internal, "internal error; the server's log says more")
	}
	// The whole chain's text: what was attempted, then why.
	return status.Error(grpcCodes[f.Kind], err.Error())
}

// ExitCode is what a command returns: 0 without error, 2 for wrong input,
// otherwise 1.
func ExitCode(err error) int {
	switch {
	case err == nil:
		return 0
	case KindOf(err) == Invalid:
		return 2
	}
	return 1
}
