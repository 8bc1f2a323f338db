package light

import (
	"encoding/binary"
	"errors"
	"unicode/utf8"
)

// Protocol buffers, of just what the messages here need: varints and
// length-delimited fields; unknown fields are skipped.

// Wire types.
const (
	wireVarint  = 0
	wireFixed64 = 1
	wireBytes   = 2
	wireFixed32 = 5
)

var errTruncated = errors.New("it ends in the middle of a field")

// eachField calls do with every field of a message: bytes for length-delimited
// ones, which alias the message; the number for varints.
func eachField(message []byte, do func(field int, bytes []byte, number uint64) error) error {
	for len(message) > 0 {
		tag, n := binary.Uvarint(message)
		if n <= 0 {
			return errTruncated
		}
		message = message[n:]
		field := tag >> 3
		if field == 0 || field > 1<<29-1 {
			return errors.New("it has a field number that cannot be")
		}
		var bytes []byte
		var number uint64
		switch tag & 7 {
		case wireVarint:
			if number, n = binary.Uvarint(message); n <= 0 {
				return errTruncated
			}
			message = message[n:]
		case wireBytes:
			size, n := binary.Uvarint(message)
			if n <= 0 || size > uint64(len(message)-n) {
				return errTruncated
			}
			bytes = message[n : n+int(size) : n+int(size)]
			message = message[n+int(size):]
			if bytes == nil {
				bytes = []byte{}
			}
		case wireFixed64, wireFixed32:
			size := 8
			if tag&7 == wireFixed32 {
				size = 4
			}
			if len(message) < size {
				return errTruncated
			}
			message = message[size:]
			continue
		default:
			return errors.New("it has a field of a type that is not used any more")
		}
		if err := do(int(field), bytes, number); err != nil {
			return err
		}
	}
	return nil
}

// text is a string field, which must be UTF-8.
func text(b []byte) (string, error) {
	if !utf8.Valid(b) {
		return "", errors.New("it has text that is not UTF-8")
	}
	return string(b), nil
}

func appendBytes(dst []byte, field int, value []byte) []byte {
	dst = binary.AppendUvarint(dst, uint64(field)<<3|wireBytes)
	dst = binary.AppendUvarint(dst, uint64(len(value)))
	return append(dst, value...)
}

func appendText(dst []byte, field int, value string) []byte {
	if value == "" {
		return dst
	}
	return appendBytes(dst, field, []byte(value))
}
