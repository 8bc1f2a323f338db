package etcd

import (
	"encoding/binary"
	"hash/crc32"
	"unsafe"
)

// The page file of etcd has no checksums over values: each value carries its
// own, a CRC-32C over key, a zero byte and value in its last four bytes, so
// that a flipped bit on the disk is never served.
const sealBytes = 4

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

func checksum(key, value []byte) uint32 {
	crc := crc32.Update(0, castagnoli, key)
	crc = crc32.Update(crc, castagnoli, []byte{0})
	return crc32.Update(crc, castagnoli, value)
}

func seal(key string, value []byte) []byte {
	out := make([]byte, len(value), len(value)+sealBytes)
	copy(out, value)
	return binary.BigEndian.AppendUint32(out, checksum(unsafe.Slice(unsafe.StringData(key), len(key)), value))
}

// unseal returns the value without its checksum, aliasing raw.
func unseal(key, raw []byte) ([]byte, bool) {
	n := len(raw) - sealBytes
	if n < 0 || binary.BigEndian.Uint32(raw[n:]) != checksum(key, raw[:n]) {
		return nil, false
	}
	return raw[:n:n], true
}
