package store

import (
	"encoding/binary"
	"math"

	"github.com/legation-io/legation/internal/fault"
)

// A stored value says what it is:
//
//	byte     0xD1, the mark of this framing
//	byte     length of kind, 1 to 64
//	bytes    kind, of A-Z a-z 0-9 . - /
//	uvarint  version, at least 1, shortest form
//	bytes    data
const (
	valueMark = 0xD1
	maxKind   = 64
)

// EncodeValue frames data with its kind and version. A kind that does not fit
// the framing or a version below 1 is a mistake in the program: it panics.
func EncodeValue(kind string, version int, data []byte) []byte {
	if !validKind(kind) || version < 1 || version > math.MaxInt32 {
		panic("store: EncodeValue: kind " + kind + " or its version does not fit the framing")
	}
	out := make([]byte, 0, 2+len(kind)+binary.MaxVarintLen32+len(data))
	out = append(out, valueMark, byte(len(kind)))
	out = append(out, kind...)
	out = binary.AppendUvarint(out, uint64(version))
	return append(out, data...)
}

// DecodeValue is the inverse of EncodeValue; data aliases raw. What
// EncodeValue cannot have written is refused with fault.Invalid.
func DecodeValue(raw []byte) (kind string, version int, data []byte, err error) {
	if len(raw) < 3 || raw[0] != valueMark {
		return "", 0, nil, fault.New(fault.Invalid, "stored value of %d bytes is not framed with a kind and a version", len(raw))
	}
	n := int(raw[1])
	if 2+n > len(raw) {
		return "", 0, nil, fault.New(fault.Invalid, "stored value of %d bytes ends within its kind", len(raw))
	}
	kind = string(raw[2 : 2+n])
	if !validKind(kind) {
		return "", 0, nil, fault.New(fault.Invalid, "stored value has the malformed kind %q", kind)
	}
	v, size := binary.Uvarint(raw[2+n:])
	if size <= 0 || v < 1 || v > math.MaxInt32 || (size > 1 && raw[2+n+size-1] == 0) {
		return "", 0, nil, fault.New(fault.Invalid, "stored value of kind %s has a malformed version", kind)
	}
	return kind, int(v), raw[2+n+size:], nil
}

// DecodeAs is DecodeValue for a reader that knows one kind up to one version.
func DecodeAs(kind string, newest int, raw []byte) (version int, data []byte, err error) {
	k, v, data, err := DecodeValue(raw)
	switch {
	case err != nil:
		return 0, nil, err
	case k != kind:
		return 0, nil, fault.New(fault.Invalid, "stored value is a %s, want a %s", k, kind)
	case v > newest:
		return 0, nil, fault.New(fault.Invalid, "stored %s has version %d; this program reads up to %d: start a newer legation", k, v, newest)
	}
	return v, data, nil
}

func validKind(kind string) bool {
	if kind == "" || len(kind) > maxKind {
		return false
	}
	for i := range len(kind) {
		c := kind[i]
		if (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (c < '0' || c > '9') && c != '.' && c != '-' && c != '/' {
			return false
		}
	}
	return true
}
