package policy

import (
	"fmt"
	"strings"
)

// CheckPath refuses a path that two programs could read differently (A38):
// what a policy is asked about must be what the service then serves. A
// canonical path starts with one slash, has no empty, "." or ".." segment, and
// consists of the characters that RFC 3986 3.3 lets a path hold as they are,
// without ";" and "%": nothing is encoded, so nothing can be decoded once more.
// The error says where the path is wrong, and does not repeat it.
func CheckPath(path string) error {
	switch {
	case path == "":
		return refusePath(0, "it is empty")
	case path[0] != '/':
		return refusePath(0, `it does not start with "/"`)
	case len(path) > MaxPathBytes:
		return &Refusal{Cause: CauseTooLarge, Detail: fmt.Sprintf("a path of %d bytes; at most %d", len(path), MaxPathBytes)}
	}
	start := 1 // of the segment
	for i := 1; ; i++ {
		if i == len(path) || path[i] == '/' {
			switch segment := path[start:i]; {
			case segment == "" && i < len(path):
				return refusePath(i, "an empty segment")
			case segment == "." || segment == "..":
				return refusePath(start, "a segment that is %q", segment)
			}
			if i == len(path) {
				return nil
			}
			start = i + 1
			continue
		}
		if !pathChar[path[i]] {
			return refusePath(i, "%q, which servers and proxies do not read alike", rune(path[i]))
		}
	}
}

func refusePath(at int, format string, args ...any) error {
	return &Refusal{Cause: CausePath, Detail: fmt.Sprintf("the path is not canonical: at byte %d %s", at, fmt.Sprintf(format, args...))}
}

// pathChar is pchar of RFC 3986 without pct-encoded and without ";".
var pathChar = func() (ok [256]bool) {
	const chars = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-._~!$&'()*+,=:@"
	for i := range len(chars) {
		ok[chars[i]] = true
	}
	return ok
}()

// CheckFullMethod refuses what is not /package.Service/Method (grpc-go once
// dispatched a path without its slash, CVE-2026-33186).
func CheckFullMethod(method string) error {
	if err := CheckPath(method); err != nil {
		return err
	}
	if service, name, ok := strings.Cut(method[1:], "/"); !ok || service == "" || name == "" || strings.Contains(name, "/") {
		return refusePath(0, "it is not /package.Service/Method")
	}
	return nil
}
