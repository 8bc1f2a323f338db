package certfile

import (
	"bytes"
	"encoding/base64"
	"fmt"

	"github.com/legation-io/legation/sdk/secretmem"
)

// maxBlocks is the most PEM blocks of one file.
const maxBlocks = 1000

// A block is one PEM block, as it stands in the file.
type block struct {
	kind    string
	line    int    // where it begins, from 1
	body    []byte // base64 with line ends; part of the file's bytes
	headers bool   // RFC 1421 headers, as old encrypted keys have
}

var (
	begin  = []byte("-----BEGIN ")
	end    = []byte("-----END ")
	dashes = []byte("-----")
)

// blocks takes a PEM file apart (RFC 7468 2, lax about text between blocks), in
// one pass: its cost is linear in the file's size whatever it holds. Unlike
// encoding/pem it does not skip what it cannot read: a block that is broken or
// does not end is an error, since half of a file must not pass for the whole.
func blocks(data []byte) ([]block, error) {
	var all []block
	var open *block
	var start int // of the open block's body
	for at, line := 0, 1; at < len(data); line++ {
		next := len(data)
		if n := bytes.IndexByte(data[at:], '\n'); n >= 0 {
			next = at + n + 1
		}
		text := bytes.TrimRight(data[at:next], " \t\r\n")
		switch {
		case bytes.HasPrefix(text, begin):
			if open != nil {
				return nil, fmt.Errorf("line %d begins a block inside the one of line %d: half written?", line, open.line)
			}
			kind, ok := bytes.CutSuffix(text[len(begin):], dashes)
			if !ok || !label(kind) {
				// Nothing of it is repeated: where line ends were lost, a key follows.
				return nil, fmt.Errorf("line %d begins as a PEM boundary and does not end as one: were its line ends lost?", line)
			}
			if len(all) == maxBlocks {
				return nil, fmt.Errorf("there are more than %d PEM blocks", maxBlocks)
			}
			open, start = &block{kind: string(kind), line: line}, next
		case bytes.HasPrefix(text, end):
			if open == nil {
				return nil, fmt.Errorf("line %d ends a block that does not begin: half written?", line)
			}
			kind, ok := bytes.CutSuffix(text[len(end):], dashes)
			if !ok || string(kind) != open.kind {
				return nil, fmt.Errorf("line %d does not end the %s of line %d", line, open.kind, open.line)
			}
			open.body = data[start:at]
			all = append(all, *open)
			open = nil
		case open != nil && bytes.IndexByte(text, ':') >= 0:
			open.headers = true
		}
		at = next
	}
	if open != nil {
		return nil, fmt.Errorf("the %s of line %d does not end: half written?", open.kind, open.line)
	}
	return all, nil
}

// label says whether a block may be named so: as all that are registered (RFC
// 7468 4) or met are, since it is repeated in errors, and base64 is not like
// that.
func label(kind []byte) bool {
	for _, c := range kind {
		if c != ' ' && (c < 'A' || c > 'Z') && (c < '0' || c > '9') {
			return false
		}
	}
	return len(kind) > 0 && len(kind) <= 64
}

// der decodes the body, which holds no secret.
func (b *block) der() ([]byte, error) {
	if b.headers {
		return nil, fmt.Errorf("the %s of line %d has headers, which are not read", b.kind, b.line)
	}
	der := make([]byte, base64.StdEncoding.DecodedLen(len(b.body)))
	n, err := base64.StdEncoding.Decode(der, b.body)
	if err != nil {
		return nil, b.broken()
	}
	return der[:n], nil
}

// secret decodes the body into locked memory, which the caller closes.
func (b *block) secret() (*secretmem.Buffer, []byte, error) {
	if len(b.body) < 4 {
		return nil, nil, b.broken()
	}
	buffer, err := secretmem.New(base64.StdEncoding.DecodedLen(len(b.body)))
	if err != nil {
		return nil, nil, err
	}
	n, err := base64.StdEncoding.Decode(buffer.Bytes(), b.body)
	if err != nil {
		buffer.Close()
		return nil, nil, b.broken()
	}
	return buffer, buffer.Bytes()[:n], nil
}

// broken says no more: the decoder's error would quote a piece of it.
func (b *block) broken() error {
	return fmt.Errorf("the %s of line %d is not base64", b.kind, b.line)
}
