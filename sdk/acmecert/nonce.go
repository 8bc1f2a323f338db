package acmecert

import (
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
)

// resign puts the nonce that came with a refusal into a request and signs it
// anew with the account's key (RFC 8555 6.5). acmez does the same, ten times
// and a quarter of a second apart: too seldom and too slow for a server, or a
// row of servers behind one name, that refuses most nonces.
func (t *transport) resign(body []byte, nonce string) ([]byte, bool) {
	t.mu.Lock()
	key := t.key
	t.mu.Unlock()
	if key == nil {
		return nil, false
	}
	return resign(key, body, nonce)
}

type jws struct {
	Protected string `json:"protected"`
	Payload   string `json:"payload"`
	Signature string `json:"signature"`
}

func resign(key *ecdsa.PrivateKey, body []byte, nonce string) ([]byte, bool) {
	var signed jws
	var header map[string]json.RawMessage
	if json.Unmarshal(body, &signed) != nil {
		return nil, false
	}
	protected, err := base64.RawURLEncoding.DecodeString(signed.Protected)
	if err != nil || json.Unmarshal(protected, &header) != nil || string(header["alg"]) != `"ES256"` {
		return nil, false
	}
	if !token(nonce) { // RFC 8555 6.5.1: a nonce is base64url too
		return nil, false
	}
	header["nonce"], _ = json.Marshal(nonce)
	if protected, err = json.Marshal(header); err != nil {
		return nil, false
	}
	signed.Protected = base64.RawURLEncoding.EncodeToString(protected)
	digest := sha256.Sum256([]byte(signed.Protected + "." + signed.Payload))
	r, s, err := ecdsa.Sign(rand.Reader, key, digest[:])
	if err != nil {
		return nil, false
	}
	signature := make([]byte, 64) // RFC 7518 3.4
	r.FillBytes(signature[:32])
	s.FillBytes(signature[32:])
	signed.Signature = base64.RawURLEncoding.EncodeToString(signature)
	again, err := json.Marshal(signed)
	return again, err == nil
}

// token says whether s is a token of the base64url alphabet (RFC 8555 8.3),
// of a length that any CA uses.
func token(s string) bool {
	if s == "" || len(s) > 256 {
		return false
	}
	for _, c := range []byte(s) {
		if !(c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '-' || c == '_') {
			return false
		}
	}
	return true
}
