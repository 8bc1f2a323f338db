package chaincheck

import (
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// Denial takes back one identity, one certificate or one key: exactly one of
// ID, Serial and SPKI is set.
type Denial struct {
	// ID denies every leaf with this SPIFFE ID.
	ID spiffeid.ID
	// Serial denies the certificate with this serial number, in hex. Case,
	// leading zeros and colons do not matter.
	Serial string
	// Issuer is the subject key identifier, in hex, of the CA whose Serial is
	// meant; empty is any CA. Only with Serial.
	Issuer string
	// SPKI denies every certificate, leaf, CA or trust anchor, that holds a
	// key: the SHA-256 of its SubjectPublicKeyInfo (RFC 7469 2.4), in hex.
	SPKI string
	// Reason and At are for people: At is not compared with any clock.
	Reason string
	At     time.Time
}

// String says in words what is denied.
func (d Denial) String() string {
	var what string
	switch {
	case !d.ID.IsZero():
		what = "the identity " + d.ID.String()
	case d.SPKI != "":
		what = "the key with SHA-256 " + d.SPKI
	case d.Issuer != "":
		what = fmt.Sprintf("serial %s of the CA with key identifier %s", d.Serial, d.Issuer)
	default:
		what = "serial " + d.Serial
	}
	if !d.At.IsZero() {
		what += " was taken back at " + stamp(d.At)
	} else {
		what += " was taken back"
	}
	if d.Reason != "" {
		what += ": " + d.Reason
	}
	return what
}

// DenySet is identities, certificates and keys that are refused whatever else
// says yes, under every Policy. It does not change; any number of goroutines
// may use it. Its memory is about 250 bytes for each denial.
type DenySet struct {
	denials []Denial
	ids     map[spiffeid.ID]int32
	serials map[string][]serialDenial // by the number's bytes, big-endian, without leading zeros
	keys    map[[sha256.Size]byte]int32
}

type serialDenial struct {
	issuer string // subject key identifier, bytes; empty is any
	index  int32
}

// Bounds of what a denial may name: RFC 5280 4.1.2.2, and key identifiers of
// any hash.
const (
	maxSerialBytes = 20
	maxKeyIDBytes  = 64
)

// NewDenySet returns a set of denials. What denies nothing (no or several
// subjects, a serial that is no number) is left out and named in the error,
// since it would be believed to deny; the set holds the rest and is usable
// even then. Of several denials of one subject the first is told.
func NewDenySet(denials []Denial) (*DenySet, error) {
	set := &DenySet{denials: make([]Denial, 0, len(denials)), ids: map[spiffeid.ID]int32{}, serials: map[string][]serialDenial{}, keys: map[[sha256.Size]byte]int32{}}
	var errs []error
	left := 0
	for n, d := range denials {
		if err := set.add(d); err != nil {
			if left++; left <= 16 {
				errs = append(errs, fmt.Errorf("denial %d is not used: %w", n, err))
			}
		}
	}
	if left > 16 {
		errs = append(errs, fmt.Errorf("and %d more", left-16))
	}
	return set, errors.Join(errs...)
}

func (set *DenySet) add(d Denial) error {
	subjects := 0
	for _, named := range []bool{!d.ID.IsZero(), d.Serial != "", d.SPKI != ""} {
		if named {
			subjects++
		}
	}
	switch {
	case subjects != 1:
		return fmt.Errorf("it names %d of identity, serial and key; exactly one is denied by one denial", subjects)
	case !d.ID.IsZero() && d.ID.Path() == "":
		return fmt.Errorf("it names the trust domain %s, which no workload is; a domain is taken back by its roots", d.ID)
	case d.Issuer != "" && d.Serial == "":
		return errors.New("it names an issuer without a serial")
	}
	index := int32(len(set.denials))
	switch {
	case d.Serial != "":
		serial, err := fromHex(d.Serial, maxSerialBytes)
		if err != nil {
			return fmt.Errorf("its serial %.64q %w", d.Serial, err)
		}
		issuer, err := fromHex(d.Issuer, maxKeyIDBytes)
		if err != nil {
			return fmt.Errorf("its issuer %.160q %w", d.Issuer, err)
		}
		key := strings.TrimLeft(string(serial), "\x00")
		if key == "" {
			return fmt.Errorf("its serial %.64q is zero, which no issued certificate has", d.Serial)
		}
		d.Serial, d.Issuer = strings.TrimLeft(hex.EncodeToString(serial), "0"), hex.EncodeToString(issuer)
		for _, other := range set.serials[key] {
			if other.issuer == string(issuer) {
				return nil
			}
		}
		set.serials[key] = append(set.serials[key], serialDenial{string(issuer), index})
	case d.SPKI != "":
		sum, err := fromHex(d.SPKI, sha256.Size)
		if err == nil && len(sum) != sha256.Size {
			err = fmt.Errorf("has %d bytes, a SHA-256 has %d", len(sum), sha256.Size)
		}
		if err != nil {
			return fmt.Errorf("its key hash %.80q %w", d.SPKI, err)
		}
		d.SPKI = hex.EncodeToString(sum)
		key := [sha256.Size]byte(sum)
		if _, twice := set.keys[key]; twice {
			return nil
		}
		set.keys[key] = index
	default:
		if _, twice := set.ids[d.ID]; twice {
			return nil
		}
		set.ids[d.ID] = index
	}
	set.denials = append(set.denials, d)
	return nil
}

// fromHex reads hex digits in either case, with or without colons between
// bytes and leading zeros beyond the limit.
func fromHex(s string, limit int) ([]byte, error) {
	if s == "" {
		return nil, nil
	}
	digits := s
	if strings.Contains(s, ":") {
		for _, pair := range strings.Split(s, ":") {
			if len(pair) != 2 {
				return nil, errors.New("has colons that do not stand between pairs of hex digits")
			}
		}
		digits = strings.ReplaceAll(s, ":", "")
	}
	if len(digits) > 4*maxKeyIDBytes {
		return nil, fmt.Errorf("has more than %d hex digits", 2*limit)
	}
	if len(digits)%2 == 1 {
		digits = "0" + digits
	}
	raw, err := hex.DecodeString(digits)
	if err != nil {
		return nil, errors.New("is not hex digits")
	}
	for len(raw) > limit && raw[0] == 0 {
		raw = raw[1:]
	}
	if len(raw) > limit {
		return nil, fmt.Errorf("has more than %d hex digits", 2*limit)
	}
	return raw, nil
}

// Len is how many subjects are denied; 0 of a nil set.
func (set *DenySet) Len() int {
	if set == nil {
		return 0
	}
	return len(set.denials)
}

// Denials returns what is denied, in the order given, spelled in lower-case
// hex. It is shared: do not change it.
func (set *DenySet) Denials() []Denial {
	if set == nil {
		return nil
	}
	return set.denials
}

// Lookup finds what denies a verified path of id, leaf first and trust anchor
// last; a nil set denies nothing. It allocates nothing.
func (set *DenySet) Lookup(id spiffeid.ID, path []*x509.Certificate) (Denial, bool) {
	if set.Len() == 0 {
		return Denial{}, false
	}
	if d := set.identity(id); d != nil {
		return *d, true
	}
	for i, cert := range path {
		var issuer *x509.Certificate
		if i+1 < len(path) {
			issuer = path[i+1]
		}
		if d := set.certificate(cert, issuer); d != nil {
			return *d, true
		}
	}
	return Denial{}, false
}

// identity finds what denies a leaf's ID; nil for nothing.
func (set *DenySet) identity(id spiffeid.ID) *Denial {
	if set == nil || len(set.ids) == 0 {
		return nil
	}
	if index, ok := set.ids[id]; ok {
		return &set.denials[index]
	}
	return nil
}

// certificate finds what denies one certificate, which issuer signed; nil for
// a trust anchor, whose own word for its issuer's key counts.
func (set *DenySet) certificate(cert, issuer *x509.Certificate) *Denial {
	if set == nil {
		return nil
	}
	if len(set.serials) > 0 && cert.SerialNumber != nil && cert.SerialNumber.Sign() > 0 && cert.SerialNumber.BitLen() <= maxSerialBytes*8 {
		var buffer [maxSerialBytes]byte
		cert.SerialNumber.FillBytes(buffer[:])
		first := maxSerialBytes - (cert.SerialNumber.BitLen()+7)/8
		if denials, ok := set.serials[string(buffer[first:])]; ok {
			keyID := cert.AuthorityKeyId
			if issuer != nil {
				keyID = issuer.SubjectKeyId
			} else if len(keyID) == 0 {
				keyID = cert.SubjectKeyId
			}
			for i := range denials {
				if denials[i].issuer == "" || denials[i].issuer == string(keyID) {
					return &set.denials[denials[i].index]
				}
			}
		}
	}
	if len(set.keys) > 0 {
		if index, ok := set.keys[sha256.Sum256(cert.RawSubjectPublicKeyInfo)]; ok {
			return &set.denials[index]
		}
	}
	return nil
}
