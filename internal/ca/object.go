package ca

import (
	"crypto/x509"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"time"

	nodev1 "github.com/legation-io/legation/api/node/v1"
	"github.com/legation-io/legation/internal/store"
)

// Kinds of stored values.
const (
	kindAuthority  = "authority"
	kindRevocation = "revocation"
	kindCRL        = "crl"
)

// authorityObject is an authority as stored.
type authorityObject struct {
	Name        string    `json:"name"`
	TrustDomain string    `json:"trustDomain"`
	CreatedAt   time.Time `json:"createdAt"`
	// Sequence of the bundle (spiffe_sequence).
	Sequence    uint64 `json:"sequence"`
	RootCert    []byte `json:"rootCert"`
	RootKey     string `json:"rootKey"`
	IssuingCert []byte `json:"issuingCert"`
	IssuingKey  string `json:"issuingKey"`
	JWTKey      string `json:"jwtKey"`
	JWTKeyID    string `json:"jwtKeyID"`
	JWTPublic   []byte `json:"jwtPublic"` // SubjectPublicKeyInfo
}

// revocationObject is a revocation as stored.
type revocationObject struct {
	ID        string    `json:"id"`
	Authority string    `json:"authority"`
	SPIFFEID  string    `json:"spiffeID,omitempty"`
	Node      string    `json:"node,omitempty"`
	Serials   []string  `json:"serials"`
	Reason    string    `json:"reason,omitempty"`
	Actor     string    `json:"actor,omitempty"`
	RevokedAt time.Time `json:"revokedAt"`
	CRLNumber uint64    `json:"crlNumber"`
	Blocks    bool      `json:"blocks"`
	LiftedAt  time.Time `json:"liftedAt,omitzero"`
}

func (r *revocationObject) proto() *nodev1.Revocation {
	return &nodev1.Revocation{
		Id: r.ID, SpiffeId: r.SPIFFEID, Node: r.Node, Serials: r.Serials, Reason: r.Reason,
		RevokedAtUnixNano: r.RevokedAt.UnixNano(), CrlNumber: r.CRLNumber, BlocksIssuance: r.Blocks, Authority: r.Authority,
	}
}

// encodeObject writes JSON of one kind, version 1.
func encodeObject(kind string, o any) ([]byte, error) {
	data, err := json.Marshal(o)
	return store.EncodeValue(kind, 1, data), err
}

// decodeObject reads JSON of one kind, version 1.
func decodeObject(value []byte, kind string, into any) error {
	_, data, err := store.DecodeAs(kind, 1, value)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(data, into); err != nil {
		return fmt.Errorf("stored %s cannot be read: %w", kind, err)
	}
	return nil
}

// crlObject is what (authority, number) is stored as, binary because it grows
// with every revocation and a store bounds its values (kind "crl", version 1):
//
//	number   uvarint
//	issuing  uvarint length, DER CertificateList
//	root     uvarint length, DER CertificateList
//	count × entry, in the order of the issuing CA's list:
//	         notAfter, revokedAt (8 bytes each, Unix seconds), first 16 bytes of the key's SHA-256
//	CRC-32C of all before (4 bytes)
type crlObject struct {
	Number  uint64
	Issuing []byte
	Root    []byte
	Entries []crlEntry
}

// crlEntry is one revoked certificate of the issuing CA.
type crlEntry struct {
	Serial    string    // lower-case hex
	RevokedAt time.Time // the list says five minutes earlier
	Reason    int       // RFC 5280 5.3.1
	NotAfter  time.Time
	Key       keyTag
}

// keyTag is enough of a key's hash to recognise it.
type keyTag [16]byte

const entryBytes = 32

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

func (c *crlObject) encode() []byte {
	b := make([]byte, 0, len(c.Issuing)+len(c.Root)+entryBytes*len(c.Entries)+64)
	b = binary.AppendUvarint(b, c.Number)
	for _, der := range [][]byte{c.Issuing, c.Root} {
		b = binary.AppendUvarint(b, uint64(len(der)))
		b = append(b, der...)
	}
	for _, e := range c.Entries {
		b = binary.BigEndian.AppendUint64(b, uint64(e.NotAfter.Unix()))
		b = binary.BigEndian.AppendUint64(b, uint64(e.RevokedAt.Unix()))
		b = append(b, e.Key[:]...)
	}
	return store.EncodeValue(kindCRL, 1, binary.BigEndian.AppendUint32(b, crc32.Checksum(b, castagnoli)))
}

func decodeCRL(value []byte) (*crlObject, error) {
	_, data, err := store.DecodeAs(kindCRL, 1, value)
	if err != nil {
		return nil, err
	}
	if len(data) < 4 {
		return nil, errors.New("stored CRL is truncated")
	}
	b, sum := data[:len(data)-4], binary.BigEndian.Uint32(data[len(data)-4:])
	if crc32.Checksum(b, castagnoli) != sum {
		return nil, errors.New("stored CRL has a wrong checksum: restore the store from a backup")
	}
	c := &crlObject{}
	var n int
	if c.Number, n = binary.Uvarint(b); n <= 0 {
		return nil, errors.New("stored CRL is truncated")
	}
	b = b[n:]
	for _, der := range []*[]byte{&c.Issuing, &c.Root} {
		size, n := binary.Uvarint(b)
		if n <= 0 || uint64(len(b)-n) < size {
			return nil, errors.New("stored CRL is truncated")
		}
		*der = b[n : n+int(size)]
		b = b[n+int(size):]
	}
	list, err := x509.ParseRevocationList(c.Issuing)
	if err != nil {
		return nil, fmt.Errorf("stored CRL: %w", err)
	}
	if len(b) != entryBytes*len(list.RevokedCertificateEntries) || !list.Number.IsUint64() || list.Number.Uint64() != c.Number {
		return nil, errors.New("stored CRL disagrees with its own list: restore the store from a backup")
	}
	c.Entries = make([]crlEntry, len(list.RevokedCertificateEntries))
	for i, e := range list.RevokedCertificateEntries {
		c.Entries[i] = crlEntry{
			Serial: serialHex(e.SerialNumber), Reason: e.ReasonCode,
			NotAfter:  time.Unix(int64(binary.BigEndian.Uint64(b)), 0).UTC(),
			RevokedAt: time.Unix(int64(binary.BigEndian.Uint64(b[8:])), 0).UTC(),
			Key:       keyTag(b[16:entryBytes]),
		}
		b = b[entryBytes:]
	}
	return c, nil
}
