package cli

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/legation-io/legation/internal/fault"
	"github.com/spf13/cobra"
)

type inspectView struct {
	Serial     string   `json:"serial"`
	Subject    string   `json:"subject"`
	Issuer     string   `json:"issuer"`
	URIs       []string `json:"uris"`
	DNSNames   []string `json:"dnsNames,omitempty"`
	IPs        []string `json:"ipAddresses,omitempty"`
	NotBefore  string   `json:"notBefore"`
	NotAfter   string   `json:"notAfter"`
	CA         bool     `json:"ca"`
	Key        string   `json:"key"`
	Signature  string   `json:"signature"`
	KeyUsage   []string `json:"keyUsage"`
	SHA256     string   `json:"sha256"`
	NotASVID   []string `json:"notAnSVIDBecause,omitempty"`
	ValidToday bool     `json:"validNow"`
}

func inspectCommand(o *options) *cobra.Command {
	return &cobra.Command{
		Use: "inspect FILE",
		Long: `Inspect reads certificates from a file, asks nobody, and says what each one is
and why it is no SVID where it is none.`,
		Example: "  legation cert inspect chain.pem\n  openssl s_client -connect api:15443 -showcerts </dev/null | legation cert inspect -",
		Short:   "Read certificates from a PEM or DER file (- is standard input) and say what they are", Args: cobra.ExactArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			raw, err := readBounded(o.in, args[0])
			if err != nil {
				return err
			}
			certs, err := parseCertificates(args[0], raw)
			if err != nil {
				return err
			}
			views := make([]inspectView, len(certs))
			for i, c := range certs {
				views[i] = inspect(c)
			}
			if o.output == "table" || o.output == "wide" {
				o.output = "yaml"
			}
			return o.print(views, table{})
		},
	}
}

func readBounded(in io.Reader, name string) ([]byte, error) {
	const limit = 8 << 20
	if name != "-" {
		f, err := os.Open(name)
		if err != nil {
			return nil, fault.New(fault.Invalid, "%w", err)
		}
		defer f.Close()
		in = f
	}
	raw, err := io.ReadAll(io.LimitReader(in, limit+1))
	if err == nil && len(raw) > limit {
		return nil, fault.New(fault.Invalid, "%s: more than %d MiB is no certificate file", name, limit>>20)
	}
	return raw, err
}

func parseCertificates(name string, raw []byte) ([]*x509.Certificate, error) {
	if !bytes.Contains(raw, []byte("-----BEGIN")) {
		certs, err := x509.ParseCertificates(raw)
		if err != nil {
			return nil, fault.New(fault.Invalid, "%s: neither PEM nor DER: %w", name, err)
		}
		return certs, nil
	}
	var certs []*x509.Certificate
	for n := 1; ; n++ {
		var block *pem.Block
		block, raw = pem.Decode(raw)
		if block == nil {
			break
		}
		if block.Type != "CERTIFICATE" {
			continue
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fault.New(fault.Invalid, "%s: PEM block %d: %w", name, n, err)
		}
		certs = append(certs, c)
	}
	if len(certs) == 0 {
		return nil, fault.New(fault.Invalid, "%s: no CERTIFICATE block in it", name)
	}
	return certs, nil
}

func inspect(c *x509.Certificate) inspectView {
	sum := sha256.Sum256(c.Raw)
	v := inspectView{
		Serial: c.SerialNumber.Text(16), Subject: c.Subject.String(), Issuer: c.Issuer.String(),
		DNSNames: c.DNSNames, NotBefore: stamp(c.NotBefore.Unix()), NotAfter: stamp(c.NotAfter.Unix()),
		CA: c.IsCA, Signature: c.SignatureAlgorithm.String(), SHA256: hex.EncodeToString(sum[:]),
		URIs: []string{}, KeyUsage: usages(c),
	}
	now := time.Now()
	v.ValidToday = !now.Before(c.NotBefore) && !now.After(c.NotAfter)
	for _, u := range c.URIs {
		v.URIs = append(v.URIs, u.String())
	}
	for _, ip := range c.IPAddresses {
		v.IPs = append(v.IPs, ip.String())
	}
	switch k := c.PublicKey.(type) {
	case *ecdsa.PublicKey:
		v.Key = "ECDSA " + k.Params().Name
	case *rsa.PublicKey:
		v.Key = fmt.Sprintf("RSA %d", k.N.BitLen())
	default:
		v.Key = c.PublicKeyAlgorithm.String()
	}
	if !c.IsCA {
		if len(c.URIs) != 1 || c.URIs[0].Scheme != "spiffe" {
			v.NotASVID = append(v.NotASVID, "it does not have exactly one spiffe:// URI SAN")
		}
		if c.KeyUsage&x509.KeyUsageDigitalSignature == 0 {
			v.NotASVID = append(v.NotASVID, "its key usage lacks digitalSignature")
		}
	}
	return v
}

func usages(c *x509.Certificate) []string {
	var all []string
	for _, u := range []struct {
		bit  x509.KeyUsage
		name string
	}{{x509.KeyUsageDigitalSignature, "digitalSignature"}, {x509.KeyUsageCertSign, "keyCertSign"}, {x509.KeyUsageCRLSign, "cRLSign"}, {x509.KeyUsageKeyEncipherment, "keyEncipherment"}} {
		if c.KeyUsage&u.bit != 0 {
			all = append(all, u.name)
		}
	}
	for _, u := range c.ExtKeyUsage {
		switch u {
		case x509.ExtKeyUsageServerAuth:
			all = append(all, "serverAuth")
		case x509.ExtKeyUsageClientAuth:
			all = append(all, "clientAuth")
		default:
			all = append(all, fmt.Sprintf("extKeyUsage(%d)", u))
		}
	}
	return all
}
