package policy

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"maps"
	"path"
	"slices"
	"strings"

	"github.com/go-jose/go-jose/v4"
	"github.com/open-policy-agent/opa/v1/bundle"
)

// A Key verifies bundles.
type Key struct {
	// ID is what the signature's header calls it (kid).
	ID string
	// Algorithm is the one algorithm that it is used with: ES256, ES384,
	// ES512, RS256, RS384, RS512, PS256, PS384, PS512 or EdDSA. Symmetric
	// ones and none do not exist here.
	Algorithm string
	// Public is a *ecdsa.PublicKey, *rsa.PublicKey of at least 2048 bits, or
	// ed25519.PublicKey.
	Public crypto.PublicKey
}

// ParseKey reads a public key, or the key of a certificate, from PEM. The
// algorithm follows from the key: ES256, ES384, ES512, PS256 or EdDSA; set
// Key.Algorithm for another, e.g. RS256, which is what opa sign uses unless
// told.
func ParseKey(id string, pemBytes []byte) (Key, error) {
	block, rest := pem.Decode(pemBytes)
	if block == nil || len(bytes.TrimSpace(rest)) > 0 {
		return Key{}, fmt.Errorf("key %s: write one PEM block with a public key", id)
	}
	k := Key{ID: id}
	var err error
	switch block.Type {
	case "PUBLIC KEY":
		k.Public, err = x509.ParsePKIXPublicKey(block.Bytes)
	case "CERTIFICATE":
		var c *x509.Certificate
		if c, err = x509.ParseCertificate(block.Bytes); err == nil {
			k.Public = c.PublicKey
		}
	default:
		err = fmt.Errorf("a PEM block of type %q; PUBLIC KEY and CERTIFICATE are known", block.Type)
	}
	if err != nil {
		return Key{}, fmt.Errorf("key %s: %w", id, err)
	}
	k.Algorithm = algorithms(k.Public)[0]
	return k, k.check()
}

// algorithms fit a key, the default first.
func algorithms(public crypto.PublicKey) []string {
	switch k := public.(type) {
	case *ecdsa.PublicKey:
		switch k.Curve.Params().BitSize {
		case 256:
			return []string{"ES256"}
		case 384:
			return []string{"ES384"}
		case 521:
			return []string{"ES512"}
		}
	case *rsa.PublicKey:
		if k.N.BitLen() >= 2048 {
			return []string{"PS256", "PS384", "PS512", "RS256", "RS384", "RS512"}
		}
	case ed25519.PublicKey:
		return []string{"EdDSA"}
	}
	return []string{""}
}

func (k Key) check() error {
	if k.ID == "" {
		return errors.New("a key has no ID")
	}
	if fit := algorithms(k.Public); k.Algorithm == "" || !slices.Contains(fit, k.Algorithm) {
		return fmt.Errorf("key %s: algorithm %q does not fit a %T; use one of %v", k.ID, k.Algorithm, k.Public, fit)
	}
	return nil
}

// hashes that a signature may list; OPA also knows MD5 and SHA-1.
var hashes = []string{"SHA-256", "SHA-384", "SHA-512"}

// verifyBundle checks that the one signature is by one of keys and covers all
// files, each by the hash of what is used of it. It returns the key's id.
func verifyBundle(files map[string][]byte, values map[string]any, keys []Key, scope string) (string, error) {
	raw, ok := files[signaturesFile]
	if !ok {
		return "", fmt.Errorf("the bundle is not signed: it has no %s; see opa sign", signaturesFile)
	}
	var list struct {
		Signatures []string `json:"signatures"`
		Plugin     string   `json:"plugin"`
	}
	if err := json.Unmarshal(raw, &list); err != nil {
		return "", fmt.Errorf("%s: %w", signaturesFile, err)
	}
	if len(list.Signatures) != 1 || list.Plugin != "" && list.Plugin != "_default" {
		return "", fmt.Errorf("%s has %d signatures; exactly one is expected, by OPA's default signer", signaturesFile, len(list.Signatures))
	}
	keyID, listed, err := verifySignature(list.Signatures[0], keys, scope)
	if err != nil {
		return "", fmt.Errorf("%s: %w", signaturesFile, err)
	}
	for _, name := range slices.Sorted(maps.Keys(files)) {
		if name == signaturesFile {
			continue
		}
		want, ok := listed[name]
		if !ok {
			return "", fmt.Errorf("%s is not signed", name)
		}
		delete(listed, name)
		hasher, err := bundle.NewSignatureHasher(bundle.HashingAlgorithm(want.Algorithm))
		if err != nil || !slices.Contains(hashes, want.Algorithm) {
			return "", fmt.Errorf("%s is signed by a hash %q; %v are known", name, want.Algorithm, hashes)
		}
		var content any = files[name]
		if v, ok := values[name]; ok { // OPA hashes the JSON value, not its spelling
			content = v
		}
		sum, err := hasher.HashFile(content)
		if err != nil {
			return "", fmt.Errorf("hash %s: %w", name, err)
		}
		if got, err := hex.DecodeString(want.Hash); err != nil || !bytes.Equal(got, sum) {
			return "", fmt.Errorf("%s is not what was signed", name)
		}
	}
	for name := range listed {
		return "", fmt.Errorf("%s was signed and is missing", name)
	}
	return keyID, nil
}

type signedFile struct {
	Name      string `json:"name"`
	Hash      string `json:"hash"`
	Algorithm string `json:"algorithm"`
}

func verifySignature(token string, keys []Key, scope string) (keyID string, files map[string]signedFile, err error) {
	var known []jose.SignatureAlgorithm
	for _, k := range keys {
		if err := k.check(); err != nil {
			return "", nil, err
		}
		known = append(known, jose.SignatureAlgorithm(k.Algorithm))
	}
	if len(known) == 0 {
		return "", nil, errors.New("no key is given to verify it")
	}
	jws, err := jose.ParseSignedCompact(token, known)
	if err != nil {
		return "", nil, fmt.Errorf("the signature cannot be read: %w", err)
	}
	header := jws.Signatures[0].Protected
	n := slices.IndexFunc(keys, func(k Key) bool { return k.ID == header.KeyID })
	switch {
	case n < 0:
		return "", nil, fmt.Errorf("signed by key %q, which is not among those given", header.KeyID)
	case header.Algorithm != keys[n].Algorithm:
		return "", nil, fmt.Errorf("signed by %s, key %s is for %s", header.Algorithm, keys[n].ID, keys[n].Algorithm)
	}
	payload, err := jws.Verify(keys[n].Public)
	if err != nil {
		return "", nil, fmt.Errorf("the signature of key %s does not hold: %w", keys[n].ID, err)
	}
	var claims struct {
		Files []signedFile `json:"files"`
		Scope string       `json:"scope"`
	}
	if err := json.Unmarshal(payload, &claims); err != nil {
		return "", nil, fmt.Errorf("the signed list: %w", err)
	}
	if claims.Scope != scope {
		return "", nil, fmt.Errorf("signed for scope %q; %q is expected", claims.Scope, scope)
	}
	files = make(map[string]signedFile, len(claims.Files))
	for _, f := range claims.Files {
		f.Name = strings.TrimPrefix(f.Name, "/")
		if _, twice := files[f.Name]; twice || path.Clean("/"+f.Name) != "/"+f.Name {
			return "", nil, fmt.Errorf("the signed list names %q twice, or not plainly", f.Name)
		}
		files[f.Name] = f
	}
	return keys[n].ID, files, nil
}
