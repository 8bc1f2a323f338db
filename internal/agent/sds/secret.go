package sds

import (
	"bytes"
	"encoding/pem"
	"maps"
	"slices"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	"github.com/legation-io/legation/internal/agent/svid"
	"github.com/legation-io/legation/internal/distribute"
	"google.golang.org/protobuf/proto"
)

// SecretNames are the names that mean "mine" and "everyone's", and what to do
// without a CRL. The zero value is what people who come from SPIRE expect.
type SecretNames struct {
	Default string // the first SVID; "" is "default"
	Bundle  string // the own trust domain's validation context; "" is "ROOTCA"
	All     string // that of all trust domains together; "" is "ALL"
	// WithoutCRL also serves validation contexts of trust domains of which no
	// CRL is known. Such a context cannot refuse a revoked peer, so without
	// this it is withheld until the first CRL arrives.
	WithoutCRL bool
}

func (n SecretNames) withDefaults() SecretNames {
	for _, d := range []struct {
		name *string
		is   string
	}{{&n.Default, "default"}, {&n.Bundle, "ROOTCA"}, {&n.All, "ALL"}} {
		if *d.name == "" {
			*d.name = d.is
		}
	}
	return n
}

// Secrets are the SDS resources of an Update, sorted by name: for each SVID
// the default name, its SPIFFE ID and its entry's own names; for each trust
// domain its ID and "<ID>/validation_context"; and the names of n. Where two
// want a name, the reserved ones come first, then SPIFFE IDs, then the order
// of SVIDs. Equal content makes equal bytes.
//
// Validation contexts are for Envoy's default validator, always: its SPIFFE
// validator ignores CRLs. They carry no SAN matchers, because Envoy would
// join them by "or" with the ones that a combined validation context states.
func Secrets(u *svid.Update, n SecretNames) []*distribute.Resource {
	if u == nil {
		return nil
	}
	n = n.withDefaults()
	b := builder{}
	b.trust(u.Trust, n)
	for name, s := range Names(u, n) {
		b.certificate(name, s)
	}
	out := make([]*distribute.Resource, 0, len(b))
	for _, name := range slices.Sorted(maps.Keys(b)) {
		out = append(out, b[name])
	}
	return out
}

// Names says which SVID each certificate's name stands for.
func Names(u *svid.Update, n SecretNames) map[string]*svid.SVID {
	n = n.withDefaults()
	names := map[string]*svid.SVID{}
	add := func(name string, s *svid.SVID) {
		if _, taken := names[name]; !taken {
			names[name] = s
		}
	}
	for i, s := range u.SVIDs {
		if i == 0 {
			add(n.Default, s)
		}
		add(s.ID.String(), s)
	}
	for _, s := range u.SVIDs {
		for _, name := range s.Entry.GetSdsNames() {
			if name != n.Default && name != n.Bundle && name != n.All {
				add(name, s)
			}
		}
	}
	return names
}

// builder holds the secrets so far, by name; the first that takes a name
// keeps it.
type builder map[string]*distribute.Resource

func (b builder) add(s *tlsv3.Secret) {
	if _, taken := b[s.Name]; taken || s.Name == "" {
		return
	}
	body, err := proto.MarshalOptions{Deterministic: true}.Marshal(s)
	if err != nil {
		return // not possible: only invalid UTF-8 in the name fails, and that is no name
	}
	b[s.Name] = distribute.NewResource(TypeSecret, s.Name, body)
}

func (b builder) certificate(name string, s *svid.SVID) {
	b.add(&tlsv3.Secret{Name: name, Type: &tlsv3.Secret_TlsCertificate{TlsCertificate: &tlsv3.TlsCertificate{
		CertificateChain: inline(encode("CERTIFICATE", s.Chain)),
		PrivateKey:       inline(encode("PRIVATE KEY", [][]byte{s.KeyPKCS8})),
	}}})
}

func (b builder) trust(t *svid.Trust, n SecretNames) {
	if t == nil {
		return
	}
	var roots, crls [][]byte
	for _, td := range slices.Sorted(maps.Keys(t.Roots)) {
		if len(t.Roots[td]) == 0 || len(t.CRLs[td]) == 0 && !n.WithoutCRL {
			continue
		}
		roots = append(roots, t.Roots[td]...)
		crls = append(crls, t.CRLs[td]...)
		names := []string{"spiffe://" + td, "spiffe://" + td + "/validation_context"}
		if td == t.TrustDomain {
			names = append(names, n.Bundle)
		}
		for _, name := range names {
			b.validation(name, t.Roots[td], t.CRLs[td])
		}
	}
	if len(roots) > 0 {
		b.validation(n.All, roots, crls)
	}
}

func (b builder) validation(name string, roots, crls [][]byte) {
	v := &tlsv3.CertificateValidationContext{TrustedCa: inline(encode("CERTIFICATE", sorted(roots)))}
	if len(crls) > 0 {
		v.Crl = inline(encode("X509 CRL", sorted(crls)))
	}
	b.add(&tlsv3.Secret{Name: name, Type: &tlsv3.Secret_ValidationContext{ValidationContext: v}})
}

// sorted also drops what is there twice: OpenSSL's store refuses that.
func sorted(der [][]byte) [][]byte {
	return slices.CompactFunc(slices.SortedFunc(slices.Values(der), bytes.Compare), bytes.Equal)
}

func inline(b []byte) *corev3.DataSource {
	return &corev3.DataSource{Specifier: &corev3.DataSource_InlineBytes{InlineBytes: b}}
}

func encode(kind string, der [][]byte) []byte {
	var out []byte
	for _, d := range der {
		out = append(out, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: d})...)
	}
	return out
}
