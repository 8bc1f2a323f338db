package ca

import (
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"

	"github.com/go-jose/go-jose/v4"

	nodev1 "github.com/legation-io/legation/api/node/v1"
)

// refreshHint is how often a reader without a push looks again, seconds.
const refreshHint = 300

type jwks struct {
	Keys        []jose.JSONWebKey `json:"keys"`
	Sequence    uint64            `json:"spiffe_sequence,omitempty"`
	RefreshHint int64             `json:"spiffe_refresh_hint,omitempty"`
}

func (a *Authority) jwtJWK() jose.JSONWebKey {
	return jose.JSONWebKey{Key: a.jwtKey.Public(), KeyID: a.object.JWTKeyID, Use: "jwt-svid"}
}

// bundle holds roots only: an intermediate is no anchor.
func (a *Authority) bundle() *nodev1.Bundle {
	set, err := json.Marshal(jwks{Keys: []jose.JSONWebKey{a.jwtJWK()}})
	if err != nil {
		panic("ca: a JWK of our own key does not marshal: " + err.Error())
	}
	return &nodev1.Bundle{
		TrustDomain: a.td.Name(), X509Roots: [][]byte{a.root.Raw}, Jwks: set,
		Sequence: a.object.Sequence, RefreshHintSeconds: refreshHint,
	}
}

// BundleJSON is the bundle in SPIFFE's format (SPIFFE Trust Domain and
// Bundle 4): x509-svid keys with their certificate in x5c, jwt-svid keys.
func (a *Authority) BundleJSON() []byte {
	set := jwks{Sequence: a.object.Sequence, RefreshHint: refreshHint}
	for _, root := range []*x509.Certificate{a.root} {
		set.Keys = append(set.Keys, jose.JSONWebKey{Key: root.PublicKey, Certificates: []*x509.Certificate{root}, Use: "x509-svid"})
	}
	set.Keys = append(set.Keys, a.jwtJWK())
	out, err := json.Marshal(set)
	if err != nil {
		panic("ca: a bundle of our own keys does not marshal: " + err.Error())
	}
	return out
}

// BundleHash is "sha256:<hex>" over the concatenated DER of the roots, for
// agents to pin.
func (a *Authority) BundleHash() string {
	sum := sha256.Sum256(a.root.Raw)
	return "sha256:" + hex.EncodeToString(sum[:])
}
