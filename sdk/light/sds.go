package light

import (
	"bytes"
	"encoding/pem"
	"errors"
	"fmt"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/legation-io/legation/sdk/internal/holder"
	"github.com/legation-io/legation/sdk/secretmem"
)

// SDS says which secrets to ask for, where an agent is asked by Envoy's
// protocol. The zero value has the names that SPIRE and Legation share.
type SDS struct {
	// Certificate is the secret with chain and key; empty is "default".
	Certificate string
	// Bundle is the secret with the own trust domain's roots and CRLs; empty
	// is "ROOTCA".
	Bundle string
	// Federated are trust domains whose roots are asked for besides, by their
	// SPIFFE ID: SDS does not tell which there are.
	Federated []spiffeid.TrustDomain
	// Node is Envoy's node id; agents that attest the caller ignore it.
	Node string
}

const typeSecret = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret"

func (s SDS) names() []string {
	names := []string{orElse(s.Certificate, "default"), orElse(s.Bundle, "ROOTCA")}
	for _, d := range s.Federated {
		names = append(names, d.IDString())
	}
	return names
}

func orElse(s, other string) string {
	if s == "" {
		return other
	}
	return s
}

// request is an envoy.service.discovery.v3.DiscoveryRequest; version and nonce
// acknowledge a response.
func (s SDS) request(version, nonce string) []byte {
	var b []byte
	b = appendText(b, 1, version)
	b = appendBytes(b, 2, appendText(nil, 1, orElse(s.Node, "legation-light")))
	for _, name := range s.names() {
		b = appendText(b, 3, name)
	}
	b = appendText(b, 4, typeSecret)
	return appendText(b, 5, nonce)
}

// secrets is what came so far by SDS, by name: a response need not have all.
type secrets struct {
	sds    SDS
	chain  [][]byte
	key    *secretmem.Buffer // PKCS #8; kept for answers that bring only a new bundle
	bundle map[string]*bundle
}

type bundle struct{ roots, crls [][]byte }

// response reads a DiscoveryResponse into what came before.
func (s *secrets) response(message []byte) (version, nonce string, err error) {
	items := 0
	err = eachField(message, func(field int, b []byte, _ uint64) (err error) {
		if b == nil {
			return nil
		}
		switch field {
		case 1:
			version, err = text(b)
		case 2:
			if items++; items > maxItems {
				return fmt.Errorf("it has more than %d secrets", maxItems)
			}
			err = s.resource(b)
		case 5:
			nonce, err = text(b)
		}
		return err
	})
	if err != nil {
		err = fmt.Errorf("the SDS response cannot be read: %w", err)
	}
	return version, nonce, err
}

// resource reads a google.protobuf.Any with a Secret.
func (s *secrets) resource(message []byte) error {
	var url string
	var value []byte
	if err := eachField(message, func(field int, b []byte, _ uint64) (err error) {
		switch {
		case field == 1 && b != nil:
			url, err = text(b)
		case field == 2 && b != nil:
			value = b
		}
		return err
	}); err != nil {
		return err
	}
	if url != typeSecret {
		return fmt.Errorf("it has a resource of type %.200q", url)
	}
	var name string
	var certificate, validation []byte
	if err := eachField(value, func(field int, b []byte, _ uint64) (err error) {
		if b == nil {
			return nil
		}
		switch field {
		case 1:
			name, err = text(b)
		case 2:
			certificate = b
		case 4:
			validation = b
		}
		return err
	}); err != nil {
		return err
	}
	switch {
	case certificate != nil && name == s.sds.names()[0]:
		return s.certificate(certificate)
	case validation != nil:
		return s.validation(name, validation)
	}
	return nil
}

// certificate reads a TlsCertificate.
func (s *secrets) certificate(message []byte) error {
	return eachField(message, func(field int, b []byte, _ uint64) error {
		if field != 1 && field != 2 || b == nil {
			return nil
		}
		raw, err := inline(b)
		if err != nil {
			return err
		}
		if field == 1 {
			s.chain, err = decodeAll("CERTIFICATE", raw)
			return err
		}
		keys, err := decodeAll("PRIVATE KEY", raw)
		if err != nil || len(keys) != 1 {
			for _, k := range keys {
				clear(k)
			}
			return fmt.Errorf("its certificate has %d private keys (PKCS #8 PEM): %w", len(keys), orNil(err))
		}
		s.close()
		s.key, err = secretmem.From(keys[0])
		return err
	})
}

func orNil(err error) error {
	if err == nil {
		return errors.New("exactly one is needed")
	}
	return err
}

// validation reads a CertificateValidationContext.
func (s *secrets) validation(name string, message []byte) error {
	b := &bundle{}
	if err := eachField(message, func(field int, v []byte, _ uint64) error {
		if v == nil || field != 1 && field != 7 {
			return nil
		}
		raw, err := inline(v)
		if err != nil {
			return err
		}
		if field == 1 {
			b.roots, err = decodeAll("CERTIFICATE", raw)
		} else {
			b.crls, err = decodeAll("X509 CRL", raw)
		}
		return err
	}); err != nil {
		return err
	}
	if s.bundle == nil {
		s.bundle = map[string]*bundle{}
	}
	if len(s.bundle) < maxItems {
		s.bundle[name] = b
	}
	return nil
}

// inline reads a DataSource that has its bytes in itself.
func inline(message []byte) ([]byte, error) {
	var raw []byte
	err := eachField(message, func(field int, b []byte, _ uint64) error {
		switch {
		case field == 2 && b != nil, field == 3 && b != nil:
			raw = b
		case field == 1 && b != nil, field == 4 && b != nil:
			return errors.New("it points to a file or a variable; only inline bytes are read")
		}
		return nil
	})
	return raw, err
}

// decodeAll is the DER of all PEM blocks, which must have one label (RFC 7468).
func decodeAll(label string, raw []byte) ([][]byte, error) {
	var all [][]byte
	for len(bytes.TrimSpace(raw)) > 0 {
		var block *pem.Block
		if block, raw = pem.Decode(raw); block == nil {
			return all, fmt.Errorf("it has something that is no PEM block where %s is wanted", label)
		}
		if block.Type != label {
			clear(block.Bytes)
			return all, fmt.Errorf("it has a PEM block %.40q where %s is wanted", block.Type, label)
		}
		if all = append(all, block.Bytes); len(all) > maxItems {
			return all, fmt.Errorf("it has more than %d PEM blocks", maxItems)
		}
	}
	return all, nil
}

// whole reports whether all that was asked for came.
func (s *secrets) whole() bool {
	if len(s.chain) == 0 || s.key == nil {
		return false
	}
	for _, name := range s.sds.names()[1:] {
		if s.bundle[name] == nil {
			return false
		}
	}
	return true
}

// answer is what the secrets come to.
func (s *secrets) answer(sizes *Sizes) (*holder.Answer, error) {
	names := s.sds.names()
	own := s.bundle[names[1]]
	p := &parts{crls: own.crls}
	item := svidParts{chain: bytes.Join(s.chain, nil), key: s.key.Bytes(), bundles: bytes.Join(own.roots, nil)}
	id, err := leafID(item.chain)
	if err != nil {
		return nil, fmt.Errorf("the secret %q: %w", names[0], err)
	}
	item.id = id.String()
	p.svids = []svidParts{item}
	for _, name := range names[2:] {
		b := s.bundle[name]
		p.federated = append(p.federated, bundleParts{name, bytes.Join(b.roots, nil)})
		p.crls = append(p.crls, b.crls...)
	}
	return p.answer(sizes)
}

func leafID(chain []byte) (spiffeid.ID, error) {
	certs, err := parseRoots(chain)
	if err != nil {
		return spiffeid.ID{}, err
	}
	if len(certs) == 0 || len(certs[0].URIs) != 1 {
		return spiffeid.ID{}, errors.New("its leaf has not exactly one URI name (X509-SVID 2)")
	}
	return spiffeid.FromURI(certs[0].URIs[0])
}

// close wipes the key.
func (s *secrets) close() {
	if s.key != nil {
		_ = s.key.Close()
		s.key = nil
	}
}
