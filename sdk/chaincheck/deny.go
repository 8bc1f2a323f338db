package chaincheck

import (
	"crypto/x509"
	"fmt"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// Denial takes back one identity or one certificate.
type Denial struct {
	// ID denies every certificate with this SPIFFE ID; zero denies by Serial.
	ID spiffeid.ID
	// Serial is the certificate's serial number in lower-case hex without
	// separators or leading zeros; used when ID is zero.
	Serial string
	// Issuer is the subject key identifier, in lower-case hex, of the CA whose
	// Serial is meant; empty is any CA.
	Issuer string
	Reason string
	At     time.Time
}

// String says in words what is denied.
func (d Denial) String() string {
	what := "the identity " + d.ID.String()
	if d.ID.IsZero() {
		what = "serial " + d.Serial
	}
	return fmt.Sprintf("%s was taken back at %s: %s", what, stamp(d.At), d.Reason)
}

func (d Denial) certificate(path []*x509.Certificate) *x509.Certificate {
	for _, c := range path {
		if d.ID.IsZero() && c.SerialNumber.Text(16) == d.Serial {
			return c
		}
	}
	return path[0]
}

// DenySet is identities and certificates that are refused whatever else says
// yes. It does not change.
type DenySet struct {
	ids     map[spiffeid.ID]Denial
	serials map[string][]Denial
}

// NewDenySet returns a set of denials. An error names what denies nothing; the
// set holds the rest.
func NewDenySet(denials []Denial) (*DenySet, error) {
	set := &DenySet{ids: map[spiffeid.ID]Denial{}, serials: map[string][]Denial{}}
	for _, d := range denials {
		switch {
		case !d.ID.IsZero():
			set.ids[d.ID] = d
		case d.Serial != "":
			set.serials[d.Serial] = append(set.serials[d.Serial], d)
		default:
			return set, fmt.Errorf("a denial names neither an identity nor a serial")
		}
	}
	return set, nil
}

// Lookup finds what denies a verified path of id; a nil set denies nothing.
func (set *DenySet) Lookup(id spiffeid.ID, path []*x509.Certificate) (Denial, bool) {
	if set == nil {
		return Denial{}, false
	}
	if d, ok := set.ids[id]; ok {
		return d, true
	}
	if len(set.serials) == 0 {
		return Denial{}, false
	}
	for _, c := range path {
		for _, d := range set.serials[c.SerialNumber.Text(16)] {
			if d.Issuer == "" || d.Issuer == fmt.Sprintf("%x", c.AuthorityKeyId) {
				return d, true
			}
		}
	}
	return Denial{}, false
}
