package renewal

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"net"
	"net/url"
	"slices"
)

var keyUsages = map[KeyUsage]x509.KeyUsage{
	"signing": x509.KeyUsageDigitalSignature, "digital signature": x509.KeyUsageDigitalSignature, "content commitment": x509.KeyUsageContentCommitment,
	"key encipherment": x509.KeyUsageKeyEncipherment, "key agreement": x509.KeyUsageKeyAgreement, "data encipherment": x509.KeyUsageDataEncipherment,
	"cert sign": x509.KeyUsageCertSign, "crl sign": x509.KeyUsageCRLSign, "encipher only": x509.KeyUsageEncipherOnly, "decipher only": x509.KeyUsageDecipherOnly,
}

type extKeyUsage struct {
	usage x509.ExtKeyUsage
	oid   asn1.ObjectIdentifier
}

func pkixUsage(u x509.ExtKeyUsage, n int) extKeyUsage {
	return extKeyUsage{u, asn1.ObjectIdentifier{1, 3, 6, 1, 5, 5, 7, 3, n}}
}

var extKeyUsages = map[KeyUsage]extKeyUsage{
	"any":         {x509.ExtKeyUsageAny, asn1.ObjectIdentifier{2, 5, 29, 37, 0}},
	"server auth": pkixUsage(x509.ExtKeyUsageServerAuth, 1), "client auth": pkixUsage(x509.ExtKeyUsageClientAuth, 2),
	"code signing": pkixUsage(x509.ExtKeyUsageCodeSigning, 3), "email protection": pkixUsage(x509.ExtKeyUsageEmailProtection, 4), "s/mime": pkixUsage(x509.ExtKeyUsageEmailProtection, 4),
	"ipsec end system": pkixUsage(x509.ExtKeyUsageIPSECEndSystem, 5), "ipsec tunnel": pkixUsage(x509.ExtKeyUsageIPSECTunnel, 6), "ipsec user": pkixUsage(x509.ExtKeyUsageIPSECUser, 7),
	"timestamping": pkixUsage(x509.ExtKeyUsageTimeStamping, 8), "ocsp signing": pkixUsage(x509.ExtKeyUsageOCSPSigning, 9),
	"microsoft sgc": {x509.ExtKeyUsageMicrosoftServerGatedCrypto, asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 311, 10, 3, 3}},
	"netscape sgc":  {x509.ExtKeyUsageNetscapeServerGatedCrypto, asn1.ObjectIdentifier{2, 16, 840, 1, 113730, 4, 1}},
}

// usages are those of the spec, or cert-manager's defaults.
func (s *CertificateSpec) usages() []KeyUsage {
	list := slices.Clone(s.Usages)
	if len(list) == 0 {
		list = []KeyUsage{"digital signature", "key encipherment"}
	}
	if s.IsCA && !slices.Contains(list, "cert sign") {
		list = append(list, "cert sign")
	}
	return list
}

// makeKey makes a key of the kind.
func makeKey(k CertificatePrivateKey) (crypto.Signer, error) {
	switch k.Algorithm {
	case ECDSA:
		curve := elliptic.P256()
		switch k.Size {
		case 384:
			curve = elliptic.P384()
		case 521:
			curve = elliptic.P521()
		}
		return ecdsa.GenerateKey(curve, rand.Reader)
	case Ed25519:
		_, key, err := ed25519.GenerateKey(rand.Reader)
		return key, err
	}
	return rsa.GenerateKey(rand.Reader, max(k.Size, 2048))
}

// keyFits says what about a key is not of the kind, or "".
func keyFits(key crypto.Signer, k CertificatePrivateKey) string {
	algorithm, size := RSA, 0
	switch key := key.Public().(type) {
	case *rsa.PublicKey:
		size = key.N.BitLen()
		k.Size = max(k.Size, 2048)
	case *ecdsa.PublicKey:
		algorithm, size = ECDSA, key.Params().BitSize
		k.Size = max(k.Size, 256)
	case ed25519.PublicKey:
		algorithm, k.Size = Ed25519, 0
	}
	if k.Algorithm != algorithm {
		return fmt.Sprintf("the key is %s, the spec asks for %s", algorithm, k.Algorithm)
	}
	if k.Size != size {
		return fmt.Sprintf("the key has %d bits, the spec asks for %d", size, k.Size)
	}
	return ""
}

// encodeKey writes PEM in the spec's encoding.
func encodeKey(key crypto.Signer, encoding KeyEncoding) ([]byte, error) {
	if encoding != PKCS8 {
		switch key := key.(type) {
		case *rsa.PrivateKey:
			return pemOf("RSA PRIVATE KEY", x509.MarshalPKCS1PrivateKey(key)), nil
		case *ecdsa.PrivateKey:
			der, err := x509.MarshalECPrivateKey(key)
			return pemOf("EC PRIVATE KEY", der), err
		}
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	return pemOf("PRIVATE KEY", der), err
}

func pemOf(kind string, blocks ...[]byte) []byte {
	var out []byte
	for _, der := range blocks {
		out = append(out, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})...)
	}
	return out
}

// decodeKey reads what encodeKey writes.
func decodeKey(data []byte) (crypto.Signer, error) {
	block, _ := pem.Decode(data)
	if block == nil {
		return nil, errors.New("it is not PEM")
	}
	var key any
	var err error
	switch block.Type {
	case "RSA PRIVATE KEY":
		key, err = x509.ParsePKCS1PrivateKey(block.Bytes)
	case "EC PRIVATE KEY":
		key, err = x509.ParseECPrivateKey(block.Bytes)
	case "PRIVATE KEY":
		key, err = x509.ParsePKCS8PrivateKey(block.Bytes)
	default:
		return nil, fmt.Errorf("it is PEM of a %q", block.Type)
	}
	if err != nil {
		return nil, errors.New("it cannot be read as a " + block.Type) // the parser's words may quote the key
	}
	if signer, ok := key.(crypto.Signer); ok {
		return signer, nil
	}
	return nil, errors.New("it cannot sign")
}

// decodeChain reads PEM certificates.
func decodeChain(data []byte) ([]*x509.Certificate, error) {
	var out []*x509.Certificate
	for block, rest := pem.Decode(data); block != nil; block, rest = pem.Decode(rest) {
		if block.Type != "CERTIFICATE" {
			return nil, fmt.Errorf("it is PEM of a %q", block.Type)
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, err
		}
		out = append(out, c)
	}
	if len(out) == 0 {
		return nil, errors.New("it is not PEM")
	}
	return out, nil
}

func samePublic(a, b crypto.PublicKey) bool {
	k, ok := a.(interface{ Equal(crypto.PublicKey) bool })
	return ok && k.Equal(b)
}

// request makes a CSR of a validated spec.
func (s *CertificateSpec) request(key crypto.Signer) ([]byte, error) {
	subject := X509Subject{}
	if s.Subject != nil {
		subject = *s.Subject
	}
	template := &x509.CertificateRequest{
		Subject: pkix.Name{
			Country: subject.Countries, Organization: subject.Organizations, OrganizationalUnit: subject.OrganizationalUnits, Locality: subject.Localities,
			Province: subject.Provinces, StreetAddress: subject.StreetAddresses, PostalCode: subject.PostalCodes, SerialNumber: subject.SerialNumber, CommonName: s.CommonName,
		},
		DNSNames: s.DNSNames, EmailAddresses: s.EmailAddresses, SignatureAlgorithm: signatureAlgorithms[s.SignatureAlgorithm].x,
	}
	for _, ip := range s.IPAddresses {
		template.IPAddresses = append(template.IPAddresses, net.ParseIP(ip))
	}
	for _, u := range s.URIs {
		p, err := url.Parse(u)
		if err != nil {
			return nil, err
		}
		template.URIs = append(template.URIs, p)
	}
	if s.EncodeUsagesInRequest == nil || *s.EncodeUsagesInRequest {
		extensions, err := usageExtensions(s.usages())
		if err != nil {
			return nil, err
		}
		template.ExtraExtensions = extensions
	}
	return x509.CreateCertificateRequest(rand.Reader, template, key)
}

// usageExtensions encodes key usage (critical) and extended key usage: RFC
// 5280 4.2.1.3 and 4.2.1.12.
func usageExtensions(usages []KeyUsage) ([]pkix.Extension, error) {
	var bits x509.KeyUsage
	var oids []asn1.ObjectIdentifier
	for _, u := range usages {
		bits |= keyUsages[u]
		if e, ok := extKeyUsages[u]; ok {
			oids = append(oids, e.oid)
		}
	}
	var out []pkix.Extension
	if bits != 0 {
		var raw [2]byte
		length := 0
		for i := range 9 { // bit 0 of the BIT STRING is the first one's most significant
			if bits&(1<<i) != 0 {
				raw[i/8] |= 0x80 >> (i % 8)
				length = i + 1
			}
		}
		der, err := asn1.Marshal(asn1.BitString{Bytes: raw[:(length+7)/8], BitLength: length})
		if err != nil {
			return nil, err
		}
		out = append(out, pkix.Extension{Id: asn1.ObjectIdentifier{2, 5, 29, 15}, Critical: true, Value: der})
	}
	if len(oids) > 0 {
		der, err := asn1.Marshal(oids)
		if err != nil {
			return nil, err
		}
		out = append(out, pkix.Extension{Id: asn1.ObjectIdentifier{2, 5, 29, 37}, Value: der})
	}
	return out, nil
}

// requestHash is a digest of what an issuer is asked for: when it changes, a
// new certificate is wanted. Order and repetition of names mean nothing.
func (s *CertificateSpec) requestHash() string {
	set := func(list []string) []string {
		list = slices.Clone(list)
		slices.Sort(list)
		return slices.Compact(list)
	}
	var usages []string
	for _, u := range s.usages() {
		usages = append(usages, string(u))
	}
	raw, err := json.Marshal([]any{s.Subject, s.CommonName, s.Duration, set(s.DNSNames), set(s.IPAddresses), set(s.URIs), set(s.EmailAddresses), s.IsCA, set(usages)})
	if err != nil {
		panic(fmt.Sprintf("renewal: %v", err)) // no field can fail
	}
	sum := sha256.Sum256(raw)
	return hex.EncodeToString(sum[:16])
}

// missingName is a name of the spec that a certificate does not have, or "".
// It judges certificates of which it is not known what was asked for.
func (s *CertificateSpec) missingName(leaf *x509.Certificate) string {
	for _, name := range s.DNSNames {
		if !slices.Contains(leaf.DNSNames, name) {
			return name
		}
	}
	for _, u := range s.URIs {
		if !slices.ContainsFunc(leaf.URIs, func(have *url.URL) bool { return have.String() == u }) {
			return u
		}
	}
	for _, ip := range s.IPAddresses {
		if !slices.ContainsFunc(leaf.IPAddresses, func(have net.IP) bool { return have.Equal(net.ParseIP(ip)) }) {
			return ip
		}
	}
	for _, m := range s.EmailAddresses {
		if !slices.Contains(leaf.EmailAddresses, m) {
			return m
		}
	}
	if s.CommonName != "" && leaf.Subject.CommonName != s.CommonName && !slices.Contains(leaf.DNSNames, s.CommonName) {
		return s.CommonName
	}
	return ""
}
