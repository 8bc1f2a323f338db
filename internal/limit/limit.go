// Package limit answers "may this caller do that again now": token buckets
// and concurrency counts per key, in bounded memory whatever callers send as
// keys. What to limit, and by which key, is the door's to decide.
package limit

import (
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/legation-io/legation/internal/fault"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"
)

// Exceeded says which limit was hit and when to try again. It travels inside
// a fault.Limited error.
type Exceeded struct {
	// What is limited, in words, e.g. "attestations from 192.0.2.1".
	What string
	// RetryAfter is when the limit has room again; 0 is not known.
	RetryAfter time.Duration
}

func (e *Exceeded) Error() string {
	if e.RetryAfter <= 0 {
		return e.What + " are limited"
	}
	return fmt.Sprintf("%s are limited; try again in %s", e.What, e.RetryAfter.Round(time.Millisecond))
}

// Error returns a fault.Limited error that says what is limited and when to
// try again.
func Error(what string, retryAfter time.Duration) error {
	e := &Exceeded{What: what, RetryAfter: retryAfter}
	return &fault.Error{Kind: fault.Limited, Message: e.Error(), Err: e}
}

// GRPC maps an error as fault.GRPC does; a limited one also carries
// google.rpc.RetryInfo, so that a client waits as long as it was told to.
func GRPC(err error) error {
	mapped := fault.GRPC(err)
	var e *Exceeded
	if mapped == nil || !errors.As(err, &e) || e.RetryAfter <= 0 {
		return mapped
	}
	detailed, derr := status.Convert(mapped).WithDetails(&errdetails.RetryInfo{RetryDelay: durationpb.New(e.RetryAfter)})
	if derr != nil {
		return mapped
	}
	return detailed.Err()
}

// RetryAfter reads when to try again from an error of this package or from a
// gRPC status with RetryInfo; false when it says nothing.
func RetryAfter(err error) (time.Duration, bool) {
	var e *Exceeded
	if errors.As(err, &e) && e.RetryAfter > 0 {
		return e.RetryAfter, true
	}
	s, ok := status.FromError(err)
	if !ok || s.Code() != codes.ResourceExhausted {
		return 0, false
	}
	for _, d := range s.Details() {
		if info, ok := d.(*errdetails.RetryInfo); ok && info.GetRetryDelay().IsValid() {
			return info.GetRetryDelay().AsDuration(), true
		}
	}
	return 0, false
}

// IPKey is the key under which an address is limited: an IPv4 address whole,
// an IPv6 address by its /64, because one host owns all of that.
func IPKey(ip netip.Addr) string {
	ip = ip.Unmap()
	if !ip.IsValid() {
		return "unknown"
	}
	if ip.Is4() {
		return ip.String()
	}
	prefix, err := ip.WithZone("").Prefix(64)
	if err != nil {
		return ip.String()
	}
	return prefix.String()
}
