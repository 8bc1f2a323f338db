package ledger

import (
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"hash/crc32"
	"net/netip"
	"time"

	"google.golang.org/protobuf/encoding/protowire"

	"github.com/legation-io/legation/internal/store"
)

const (
	segmentVersion = 1
	maxRecordBytes = 64 << 10
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// Field numbers of a record; never reused.
const (
	fieldKind           protowire.Number = 1
	fieldAuthority      protowire.Number = 2
	fieldProfile        protowire.Number = 3
	fieldSerial         protowire.Number = 4 // raw bytes of the hex
	fieldSPIFFEID       protowire.Number = 5
	fieldNamespace      protowire.Number = 6
	fieldEntry          protowire.Number = 7
	fieldNode           protowire.Number = 8
	fieldInstance       protowire.Number = 9
	fieldIssuedAt       protowire.Number = 10 // Unix nanoseconds
	fieldNotBefore      protowire.Number = 11 // Unix seconds
	fieldNotAfter       protowire.Number = 12 // Unix seconds
	fieldDNSName        protowire.Number = 13
	fieldIP             protowire.Number = 14
	fieldAudience       protowire.Number = 15
	fieldSHA256         protowire.Number = 16
	fieldKeySHA256      protowire.Number = 17
	fieldLifetimeReason protowire.Number = 18
)

// appendRecord appends the framed record. The serial must be lower-case hex.
func appendRecord(dst []byte, r *Record) ([]byte, error) {
	serial, err := hex.DecodeString(r.Serial)
	if err != nil || len(serial) == 0 || hex.EncodeToString(serial) != r.Serial {
		return dst, fmt.Errorf("serial %q of %s is not lower-case hex", r.Serial, r.SPIFFEID)
	}
	p := make([]byte, 0, 512)
	str := func(n protowire.Number, s string) {
		if s != "" {
			p = protowire.AppendString(protowire.AppendTag(p, n, protowire.BytesType), s)
		}
	}
	num := func(n protowire.Number, v int64) {
		p = protowire.AppendVarint(protowire.AppendTag(p, n, protowire.VarintType), uint64(v))
	}
	raw := func(n protowire.Number, b []byte) {
		p = protowire.AppendBytes(protowire.AppendTag(p, n, protowire.BytesType), b)
	}
	num(fieldKind, int64(r.Kind))
	str(fieldAuthority, r.Authority)
	str(fieldProfile, r.Profile)
	raw(fieldSerial, serial)
	str(fieldSPIFFEID, r.SPIFFEID)
	str(fieldNamespace, r.Namespace)
	str(fieldEntry, r.Entry)
	str(fieldNode, r.Node)
	str(fieldInstance, r.Instance)
	num(fieldIssuedAt, r.IssuedAt.UnixNano())
	num(fieldNotBefore, r.NotBefore.Unix())
	num(fieldNotAfter, r.NotAfter.Unix())
	for _, name := range r.DNSNames {
		raw(fieldDNSName, []byte(name))
	}
	for _, ip := range r.IPs {
		raw(fieldIP, ip.AsSlice())
	}
	for _, aud := range r.Audience {
		raw(fieldAudience, []byte(aud))
	}
	raw(fieldSHA256, r.SHA256[:])
	if r.KeySHA256 != [32]byte{} {
		raw(fieldKeySHA256, r.KeySHA256[:])
	}
	str(fieldLifetimeReason, r.LifetimeReason)
	if len(p) > maxRecordBytes {
		return dst, fmt.Errorf("record of %s is %d bytes, over the limit of %d", r.SPIFFEID, len(p), maxRecordBytes)
	}
	dst = binary.AppendUvarint(dst, uint64(len(p)))
	dst = append(dst, p...)
	return binary.BigEndian.AppendUint32(dst, crc32.Checksum(p, castagnoli)), nil
}

// encodeSegment frames records that appendRecord encoded.
func encodeSegment(count int, frames ...[]byte) []byte {
	size := binary.MaxVarintLen32
	for _, f := range frames {
		size += len(f)
	}
	b := binary.AppendUvarint(make([]byte, 0, size), uint64(count))
	for _, f := range frames {
		b = append(b, f...)
	}
	return store.EncodeValue(kindSegment, segmentVersion, b)
}

// DecodeSegment reads a segment's value. It refuses what is truncated, has
// bytes left over, a wrong checksum or a newer version.
func DecodeSegment(b []byte) ([]Record, error) {
	_, b, err := store.DecodeAs(kindSegment, segmentVersion, b)
	if err != nil {
		return nil, err
	}
	count, n := binary.Uvarint(b)
	// A record is at least a length byte and a checksum.
	if n <= 0 || count > uint64(len(b)-n)/5 {
		return nil, errors.New("journal segment has a bad record count")
	}
	b = b[n:]
	records := make([]Record, 0, count)
	for i := range count {
		size, n := binary.Uvarint(b)
		if n <= 0 || size > maxRecordBytes || uint64(len(b)-n) < size+4 {
			return nil, fmt.Errorf("journal record %d is truncated", i)
		}
		payload := b[n : n+int(size)]
		b = b[n+int(size):]
		if crc32.Checksum(payload, castagnoli) != binary.BigEndian.Uint32(b) {
			return nil, fmt.Errorf("journal record %d has a wrong checksum", i)
		}
		b = b[4:]
		r, err := decodeRecord(payload)
		if err != nil {
			return nil, fmt.Errorf("journal record %d: %w", i, err)
		}
		records = append(records, r)
	}
	if len(b) != 0 {
		return nil, fmt.Errorf("journal segment has %d bytes left over", len(b))
	}
	return records, nil
}

func decodeRecord(p []byte) (Record, error) {
	var r Record
	for len(p) > 0 {
		num, typ, n := protowire.ConsumeTag(p)
		if n < 0 {
			return r, protowire.ParseError(n)
		}
		p = p[n:]
		switch typ {
		case protowire.VarintType:
			v, n := protowire.ConsumeVarint(p)
			if n < 0 {
				return r, protowire.ParseError(n)
			}
			p = p[n:]
			r.setNumber(num, v)
		case protowire.BytesType:
			v, n := protowire.ConsumeBytes(p)
			if n < 0 {
				return r, protowire.ParseError(n)
			}
			p = p[n:]
			if err := r.setBytes(num, v); err != nil {
				return r, err
			}
		default:
			n := protowire.ConsumeFieldValue(num, typ, p)
			if n < 0 {
				return r, protowire.ParseError(n)
			}
			p = p[n:]
		}
	}
	switch {
	case r.Kind != KindX509 && r.Kind != KindJWT:
		return r, fmt.Errorf("kind %d is unknown", r.Kind)
	case r.Serial == "":
		return r, errors.New("no serial")
	case r.NotAfter.IsZero():
		return r, errors.New("no end of validity")
	}
	return r, nil
}

func (r *Record) setNumber(num protowire.Number, v uint64) {
	switch num {
	case fieldKind:
		r.Kind = Kind(min(v, 255))
	case fieldIssuedAt:
		r.IssuedAt = time.Unix(0, int64(v)).UTC()
	case fieldNotBefore:
		r.NotBefore = time.Unix(int64(v), 0).UTC()
	case fieldNotAfter:
		r.NotAfter = time.Unix(int64(v), 0).UTC()
	}
}

func (r *Record) setBytes(num protowire.Number, v []byte) error {
	switch num {
	case fieldAuthority:
		r.Authority = string(v)
	case fieldProfile:
		r.Profile = string(v)
	case fieldSerial:
		r.Serial = hex.EncodeToString(v)
	case fieldSPIFFEID:
		r.SPIFFEID = string(v)
	case fieldNamespace:
		r.Namespace = string(v)
	case fieldEntry:
		r.Entry = string(v)
	case fieldNode:
		r.Node = string(v)
	case fieldInstance:
		r.Instance = string(v)
	case fieldDNSName:
		r.DNSNames = append(r.DNSNames, string(v))
	case fieldIP:
		ip, ok := netip.AddrFromSlice(v)
		if !ok {
			return fmt.Errorf("an address has %d bytes", len(v))
		}
		r.IPs = append(r.IPs, ip)
	case fieldAudience:
		r.Audience = append(r.Audience, string(v))
	case fieldSHA256:
		return copyHash(&r.SHA256, v)
	case fieldKeySHA256:
		return copyHash(&r.KeySHA256, v)
	case fieldLifetimeReason:
		r.LifetimeReason = string(v)
	}
	return nil
}

func copyHash(dst *[32]byte, v []byte) error {
	if len(v) != len(dst) {
		return fmt.Errorf("a SHA-256 has %d bytes", len(v))
	}
	copy(dst[:], v)
	return nil
}
