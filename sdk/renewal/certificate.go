package renewal

import (
	"fmt"
	"reflect"
	"strings"
	"time"
)

// APIVersion and Kind are what a Certificate's document begins with.
const (
	APIVersion = "cert-manager.io/v1"
	Kind       = "Certificate"
)

// Certificate is a certificate that is wanted, and what became of it. It reads
// and writes the YAML and JSON of cert-manager.io/v1 Certificate, every field.
type Certificate struct {
	APIVersion string            `json:"apiVersion"`
	Kind       string            `json:"kind"`
	Metadata   ObjectMeta        `json:"metadata"`
	Spec       CertificateSpec   `json:"spec"`
	Status     CertificateStatus `json:"status"`
}

// Key names a Certificate.
type Key struct{ Namespace, Name string }

// String returns "namespace/name".
func (k Key) String() string { return k.Namespace + "/" + k.Name }

// ParseKey reads "namespace/name", or "name" in the namespace "default".
func ParseKey(s string) (Key, error) {
	k := Key{Namespace: DefaultNamespace, Name: s}
	if ns, name, ok := strings.Cut(s, "/"); ok {
		k = Key{Namespace: ns, Name: name}
	}
	if !isLabel(k.Namespace) || !isSubdomain(k.Name) {
		return Key{}, fmt.Errorf("%q names no certificate: write namespace/name", s)
	}
	return k, nil
}

// DefaultNamespace is where a certificate is whose document names none.
const DefaultNamespace = "default"

// Key returns the certificate's name.
func (c *Certificate) Key() Key {
	if c.Metadata.Namespace == "" {
		return Key{DefaultNamespace, c.Metadata.Name}
	}
	return Key{c.Metadata.Namespace, c.Metadata.Name}
}

// Clone returns a copy that shares nothing.
func (c *Certificate) Clone() *Certificate {
	out := new(Certificate)
	deepCopy(reflect.ValueOf(out).Elem(), reflect.ValueOf(c).Elem())
	return out
}

// deepCopy copies the kinds of values that these types have.
func deepCopy(to, from reflect.Value) {
	switch from.Kind() {
	case reflect.Pointer:
		if !from.IsNil() {
			to.Set(reflect.New(from.Type().Elem()))
			deepCopy(to.Elem(), from.Elem())
		}
	case reflect.Struct:
		to.Set(from) // also what is not exported, as in time.Time
		for i := range from.NumField() {
			switch from.Field(i).Kind() {
			case reflect.Pointer, reflect.Slice, reflect.Map, reflect.Struct:
				if to.Field(i).CanSet() && from.Field(i).Type() != reflect.TypeFor[time.Time]() {
					deepCopy(to.Field(i), from.Field(i))
				}
			}
		}
	case reflect.Slice:
		if !from.IsNil() {
			to.Set(reflect.MakeSlice(from.Type(), from.Len(), from.Len()))
			for i := range from.Len() {
				deepCopy(to.Index(i), from.Index(i))
			}
		}
	case reflect.Map:
		if !from.IsNil() {
			to.Set(reflect.MakeMapWithSize(from.Type(), from.Len()))
			for k, v := range from.Seq2() {
				e := reflect.New(from.Type().Elem()).Elem()
				deepCopy(e, v)
				to.SetMapIndex(k, e)
			}
		}
	case reflect.Interface:
		if !from.IsNil() {
			e := reflect.New(from.Elem().Type()).Elem()
			deepCopy(e, from.Elem())
			to.Set(e)
		}
	default:
		to.Set(from)
	}
}

// ObjectMeta is the metadata of a Kubernetes object. What only the API server
// uses is carried along.
type ObjectMeta struct {
	Name              string            `json:"name,omitempty"`
	GenerateName      string            `json:"generateName,omitempty"`
	Namespace         string            `json:"namespace,omitempty"`
	SelfLink          string            `json:"selfLink,omitempty"`
	UID               string            `json:"uid,omitempty"`
	ResourceVersion   string            `json:"resourceVersion,omitempty"` // changes with every write
	Generation        int64             `json:"generation,omitempty"`      // counts changes of the spec
	CreationTimestamp *Time             `json:"creationTimestamp,omitempty"`
	DeletionTimestamp *Time             `json:"deletionTimestamp,omitempty"` // set: nothing is issued any more
	DeletionGrace     *int64            `json:"deletionGracePeriodSeconds,omitempty"`
	Labels            map[string]string `json:"labels,omitempty"`
	Annotations       map[string]string `json:"annotations,omitempty"`
	OwnerReferences   []any             `json:"ownerReferences,omitempty"`
	Finalizers        []string          `json:"finalizers,omitempty"`
	ManagedFields     []any             `json:"managedFields,omitempty"`
}

// CertificateSpec is what is wanted. The comments say what this package does;
// fields that Validate refuses are read so that the refusal can say why.
type CertificateSpec struct {
	Subject        *X509Subject `json:"subject,omitempty"`
	LiteralSubject string       `json:"literalSubject,omitempty"` // refused
	// CommonName has at most 64 characters.
	CommonName string `json:"commonName,omitempty"`
	// Duration is the lifetime to ask for; nil leaves it to the issuer, which
	// may return another one anyway. At least an hour.
	Duration *Duration `json:"duration,omitempty"`
	// RenewBefore is how long before its end a certificate is renewed; at
	// least 5 minutes and below Duration. Nil: a third of the lifetime that the
	// certificate really has, as also when that lifetime is not longer.
	RenewBefore *Duration `json:"renewBefore,omitempty"`
	// RenewBeforePercentage is the same in percent of the real lifetime, 1 to
	// 99. Not together with RenewBefore.
	RenewBeforePercentage *int32              `json:"renewBeforePercentage,omitempty"`
	Renewal               *CertificateRenewal `json:"renewal,omitempty"`
	DNSNames              []string            `json:"dnsNames,omitempty"`
	IPAddresses           []string            `json:"ipAddresses,omitempty"`
	URIs                  []string            `json:"uris,omitempty"`
	OtherNames            []OtherName         `json:"otherNames,omitempty"` // refused
	EmailAddresses        []string            `json:"emailAddresses,omitempty"`
	// SecretName is where key and certificate are kept, in the same namespace.
	// One Certificate per Secret.
	SecretName     string                     `json:"secretName"`
	SecretTemplate *CertificateSecretTemplate `json:"secretTemplate,omitempty"`
	Keystores      *CertificateKeystores      `json:"keystores,omitempty"` // refused
	IssuerRef      IssuerRef                  `json:"issuerRef"`
	IsCA           bool                       `json:"isCA,omitempty"`
	// Usages are "digital signature" and "key encipherment" when there are none.
	Usages                  []KeyUsage                          `json:"usages,omitempty"`
	PrivateKey              *CertificatePrivateKey              `json:"privateKey,omitempty"`
	SignatureAlgorithm      SignatureAlgorithm                  `json:"signatureAlgorithm,omitempty"`
	EncodeUsagesInRequest   *bool                               `json:"encodeUsagesInRequest,omitempty"` // nil: true
	RevisionHistoryLimit    *int32                              `json:"revisionHistoryLimit,omitempty"`  // no history is kept
	AdditionalOutputFormats []CertificateAdditionalOutputFormat `json:"additionalOutputFormats,omitempty"`
	NameConstraints         *NameConstraints                    `json:"nameConstraints,omitempty"` // refused
}

// X509Subject is the subject besides its common name (RFC 5280 4.1.2.6).
type X509Subject struct {
	Organizations       []string `json:"organizations,omitempty"`
	Countries           []string `json:"countries,omitempty"`
	OrganizationalUnits []string `json:"organizationalUnits,omitempty"`
	Localities          []string `json:"localities,omitempty"`
	Provinces           []string `json:"provinces,omitempty"`
	StreetAddresses     []string `json:"streetAddresses,omitempty"`
	PostalCodes         []string `json:"postalCodes,omitempty"`
	SerialNumber        string   `json:"serialNumber,omitempty"`
}

// CertificateRenewal is the policy of renewal.
type CertificateRenewal struct {
	Policy  RenewalPolicy    `json:"policy,omitempty"`
	Windows []RenewalWindows `json:"windows,omitempty"` // refused
}

// RenewalPolicy is whether a certificate is renewed before it ends.
type RenewalPolicy string

// The policies; empty is RenewBefore.
const (
	RenewBefore RenewalPolicy = "RenewBefore"
	Disabled    RenewalPolicy = "Disabled" // only when it is missing, wrong or asked for by hand
)

// RenewalWindows are hours in which renewing is allowed.
type RenewalWindows struct {
	Timezone       string    `json:"timezone,omitempty"`
	WindowDuration *Duration `json:"windowDuration,omitempty"`
	Cron           string    `json:"cron,omitempty"`
}

// OtherName is a subject alternative name of any type (RFC 5280 4.2.1.6).
type OtherName struct {
	OID       string `json:"oid,omitempty"`
	UTF8Value string `json:"utf8Value,omitempty"`
}

// IssuerRef names who issues. Empty Kind is "Issuer" (of the certificate's
// namespace), empty Group is "cert-manager.io".
type IssuerRef struct {
	Name  string `json:"name"`
	Kind  string `json:"kind,omitempty"`
	Group string `json:"group,omitempty"`
}

// String returns "Kind/name", or "Kind.group/name" for another group.
func (r IssuerRef) String() string {
	kind := r.Kind
	if kind == "" {
		kind = "Issuer"
	}
	if r.Group != "" && r.Group != "cert-manager.io" {
		kind += "." + r.Group
	}
	return kind + "/" + r.Name
}

// CertificatePrivateKey is what key to make.
type CertificatePrivateKey struct {
	RotationPolicy RotationPolicy `json:"rotationPolicy,omitempty"`
	// Encoding of the stored key: PKCS1 (the default; SEC 1 for ECDSA, PKCS #8
	// for Ed25519) or PKCS8.
	Encoding  KeyEncoding  `json:"encoding,omitempty"`
	Algorithm KeyAlgorithm `json:"algorithm,omitempty"`
	// Size in bits: RSA 2048 (the default) to 8192; ECDSA 256 (the default),
	// 384 or 521; not used by Ed25519.
	Size int `json:"size,omitempty"`
}

// RotationPolicy is whether a new certificate gets a new key.
type RotationPolicy string

// The policies; empty is RotateAlways.
const (
	RotateAlways RotationPolicy = "Always"
	RotateNever  RotationPolicy = "Never" // while the key that is there is readable and fits the spec
)

// KeyAlgorithm is a kind of key.
type KeyAlgorithm string

// The algorithms; empty is Config.PrivateKey's, and that is RSA unless set.
const (
	RSA     KeyAlgorithm = "RSA"
	ECDSA   KeyAlgorithm = "ECDSA"
	Ed25519 KeyAlgorithm = "Ed25519"
)

// KeyEncoding is how a key is written.
type KeyEncoding string

// The encodings; empty is PKCS1.
const (
	PKCS1 KeyEncoding = "PKCS1"
	PKCS8 KeyEncoding = "PKCS8"
)

// SignatureAlgorithm is how the request is signed.
type SignatureAlgorithm string

// KeyUsage is a key usage or an extended key usage (RFC 5280 4.2.1.3, 4.2.1.12).
type KeyUsage string

// CertificateSecretTemplate is put onto the Secret.
type CertificateSecretTemplate struct {
	Annotations map[string]string `json:"annotations,omitempty"`
	Labels      map[string]string `json:"labels,omitempty"`
}

// CertificateAdditionalOutputFormat is one more form in the Secret.
type CertificateAdditionalOutputFormat struct {
	// Type is CombinedPEM ("tls-combined.pem": key, then chain) or DER
	// ("key.der": the key).
	Type string `json:"type"`
}

// CertificateKeystores are Java's and PKCS #12 stores.
type CertificateKeystores struct {
	JKS    *Keystore `json:"jks,omitempty"`
	PKCS12 *Keystore `json:"pkcs12,omitempty"`
}

// Keystore is one of them. Alias is JKS's, Profile PKCS12's.
type Keystore struct {
	Create            bool               `json:"create"`
	Alias             *string            `json:"alias,omitempty"`
	Profile           string             `json:"profile,omitempty"`
	PasswordSecretRef *SecretKeySelector `json:"passwordSecretRef,omitempty"`
	Password          *string            `json:"password,omitempty"`
}

// SecretKeySelector names one value of a Secret.
type SecretKeySelector struct {
	Name string `json:"name"`
	Key  string `json:"key,omitempty"`
}

// NameConstraints of a CA certificate (RFC 5280 4.2.1.10).
type NameConstraints struct {
	Critical  bool                `json:"critical,omitempty"`
	Permitted *NameConstraintItem `json:"permitted,omitempty"`
	Excluded  *NameConstraintItem `json:"excluded,omitempty"`
}

// NameConstraintItem are names that are permitted or excluded.
type NameConstraintItem struct {
	DNSDomains     []string `json:"dnsDomains,omitempty"`
	IPRanges       []string `json:"ipRanges,omitempty"`
	EmailAddresses []string `json:"emailAddresses,omitempty"`
	URIDomains     []string `json:"uriDomains,omitempty"`
}
