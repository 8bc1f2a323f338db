package file

import (
	"context"
	"crypto"
	"crypto/aes"
	"crypto/cipher"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"fmt"

	"github.com/legation-io/legation/internal/ca/custody"
	"github.com/legation-io/legation/internal/fault"
	"github.com/legation-io/legation/internal/store"
)

const kind = "sealed-key"

// Params is what a Provider needs.
type Params struct {
	Store       store.Store
	TrustDomain string
	KEK         *KEK
}

// Provider is a custody.Provider over the store.
type Provider struct {
	p    Params
	aead cipher.AEAD
}

var _ custody.Provider = (*Provider)(nil)

// sealed is the stored value. KEKID says which key opens it.
type sealed struct {
	Name      string            `json:"name"`
	Algorithm custody.Algorithm `json:"algorithm"`
	KEKID     string            `json:"kekID"`
	Nonce     []byte            `json:"nonce"`
	// Box is the PKCS #8 key, sealed with AES-256-GCM; the name is the
	// additional data, so that no sealed key can be moved to another name.
	Box []byte `json:"box"`
}

// New returns a provider; it reads nothing.
func New(p Params) (*Provider, error) {
	block, err := aes.NewCipher(p.KEK.key[:])
	if err != nil {
		return nil, err
	}
	aead, err := cipher.NewGCM(block)
	if err != nil {
		return nil, err
	}
	return &Provider{p: p, aead: aead}, nil
}

func (f *Provider) key(name string) string {
	return store.Key{TrustDomain: f.p.TrustDomain, Namespace: store.System, Kind: kind, Name: name}.String()
}

func additional(name string, alg custody.Algorithm) []byte {
	return []byte("legation sealed key v1\x00" + name + "\x00" + string(alg))
}

// Create makes, seals and stores a key.
func (f *Provider) Create(ctx context.Context, name string, alg custody.Algorithm) (crypto.Signer, error) {
	if err := custody.CheckName(name); err != nil {
		return nil, err
	}
	var curve elliptic.Curve
	switch alg {
	case custody.ECDSAP256:
		curve = elliptic.P256()
	case custody.ECDSAP384:
		curve = elliptic.P384()
	default:
		return nil, fault.New(fault.Invalid, "create key %s: algorithm %q is unknown; write %s or %s", name, alg, custody.ECDSAP256, custody.ECDSAP384)
	}
	key, err := ecdsa.GenerateKey(curve, rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("create key %s: %w", name, err)
	}
	plain, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, fmt.Errorf("create key %s: %w", name, err)
	}
	defer clear(plain)
	s := sealed{Name: name, Algorithm: alg, KEKID: f.p.KEK.ID(), Nonce: make([]byte, f.aead.NonceSize())}
	rand.Read(s.Nonce)
	s.Box = f.aead.Seal(nil, s.Nonce, plain, additional(name, alg))
	value, err := json.Marshal(s)
	if err != nil {
		return nil, fmt.Errorf("create key %s: %w", name, err)
	}
	_, err = f.p.Store.Commit(ctx, store.Txn{
		If:   []store.Cond{{Key: f.key(name)}},
		Then: []store.Op{{Key: f.key(name), Value: store.EncodeValue(kind, 1, value)}},
	})
	if fault.Is(err, fault.Conflict) {
		return nil, fault.New(fault.Conflict, "create key %s: the name is taken, and names are never reused", name)
	}
	if err != nil {
		return nil, fmt.Errorf("create key %s: %w", name, err)
	}
	return key, nil
}

// Open reads and unseals a key.
func (f *Provider) Open(ctx context.Context, name string) (crypto.Signer, error) {
	if err := custody.CheckName(name); err != nil {
		return nil, err
	}
	kv, err := f.p.Store.Get(ctx, f.key(name))
	if fault.Is(err, fault.NotFound) {
		return nil, fault.New(fault.NotFound, "open key %s: the store holds no key of that name", name)
	}
	if err != nil {
		return nil, fmt.Errorf("open key %s: %w", name, err)
	}
	return f.unseal(name, kv.Value)
}

func (f *Provider) unseal(name string, value []byte) (crypto.Signer, error) {
	_, data, err := store.DecodeAs(kind, 1, value)
	if err != nil {
		return nil, fmt.Errorf("open key %s: %w", name, err)
	}
	var s sealed
	if err := json.Unmarshal(data, &s); err != nil {
		return nil, fmt.Errorf("open key %s: the stored value cannot be read: %w", name, err)
	}
	if s.Name != name {
		return nil, fmt.Errorf("open key %s: the sealed key was moved from the name %q: restore the store from a backup", name, s.Name)
	}
	if s.KEKID != f.p.KEK.ID() {
		return nil, fault.New(fault.Invalid, "open key %s: it was sealed under key-encryption key %s, but the file given holds %s: give this replica the same --kek-file as the others (or restore it from the backup made with the store)", name, s.KEKID, f.p.KEK.ID())
	}
	if len(s.Nonce) != f.aead.NonceSize() {
		return nil, fmt.Errorf("open key %s: the sealed key is damaged (nonce of %d bytes): restore the store from a backup", name, len(s.Nonce))
	}
	plain, err := f.aead.Open(nil, s.Nonce, s.Box, additional(name, s.Algorithm))
	if err != nil {
		return nil, fmt.Errorf("open key %s: the sealed key is damaged or was moved from another name: restore the store from a backup", name)
	}
	defer clear(plain)
	key, err := x509.ParsePKCS8PrivateKey(plain)
	if err != nil {
		return nil, fmt.Errorf("open key %s: what was sealed is no key", name) // the cause could quote it
	}
	signer, ok := key.(crypto.Signer)
	if !ok {
		return nil, fmt.Errorf("open key %s: a %T does not sign", name, key)
	}
	return signer, nil
}

// Sealed reports whether the store holds sealed keys, so that a lost
// key-encryption key is asked for and not made anew.
func Sealed(ctx context.Context, s store.Store, trustDomain string) (bool, error) {
	kvs, _, err := s.List(ctx, store.Prefix+trustDomain+"/"+store.System+"/"+kind+"/")
	if err != nil {
		return false, fmt.Errorf("look for sealed keys: %w", err)
	}
	return len(kvs) > 0, nil
}
