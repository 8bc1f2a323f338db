package jwtcheck

import (
	"encoding/base64"
	"fmt"
	"math"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/json" // refuses members that are there twice, and reads names by exact case
	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// algorithms of JWT-SVID 2.1. "none" and HMAC are no member.
var algorithms = []jose.SignatureAlgorithm{
	jose.ES256, jose.ES384, jose.ES512,
	jose.RS256, jose.RS384, jose.RS512,
	jose.PS256, jose.PS384, jose.PS512,
}

// parts is a token that is spelled right; nothing of it is verified.
type parts struct {
	alg     jose.SignatureAlgorithm
	kid     string
	payload []byte
}

// maxDepth of the claims' JSON: a decoder recurses.
const maxDepth = 32

// strict refuses padding, line breaks and stray bits in the last character: a
// token has one spelling.
var strict = base64.RawURLEncoding.Strict()

// split reads JWS compact serialisation (RFC 7515 7.1; JWT-SVID 5.1).
func split(token string) (parts, error) {
	first := strings.IndexByte(token, '.')
	last := strings.LastIndexByte(token, '.')
	if first <= 0 || last <= first+1 || last == len(token)-1 || strings.IndexByte(token[first+1:last], '.') >= 0 {
		return parts{}, refuse(Malformed, "it is not in JWS compact serialisation (three parts, two dots)")
	}
	for i := range len(token) {
		if !base64url[token[i]] && token[i] != '.' {
			return parts{}, refuse(Malformed, "it is not in JWS compact serialisation: byte %d is not base64url", i)
		}
	}
	header, err := strict.DecodeString(token[:first])
	if err != nil {
		return parts{}, refuse(Malformed, "its header is not base64url")
	}
	p, err := readHeader(header)
	if err != nil {
		return parts{}, err
	}
	if p.payload, err = strict.DecodeString(token[first+1 : last]); err != nil {
		return parts{}, refuse(Malformed, "its payload is not base64url")
	}
	if _, err := strict.DecodeString(token[last+1:]); err != nil {
		return parts{}, refuse(Malformed, "its signature is not base64url")
	}
	return p, nil
}

var base64url = func() (is [256]bool) {
	for _, c := range []byte("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_") {
		is[c] = true
	}
	return is
}()

// readHeader allows what JWT-SVID 2 describes and nothing else.
func readHeader(raw []byte) (parts, error) {
	header, err := decodeObject(raw)
	if err != nil {
		return parts{}, refuse(BadHeader, "its header: %v", err)
	}
	var p parts
	for name, value := range header {
		text, ok := value.(string)
		switch name {
		case "alg":
			p.alg = jose.SignatureAlgorithm(text)
		case "kid":
			p.kid = text
		case "typ":
			if ok && text != "JWT" && text != "JOSE" {
				return parts{}, refuse(BadHeader, "its header has typ %.100q, want JWT or JOSE (JWT-SVID 2.3)", text)
			}
		case "crit":
			return parts{}, refuse(BadHeader, "its header has crit, and no extension is known here")
		default:
			return parts{}, refuse(BadHeader, "its header has %.100q; a JWT-SVID's has alg, kid and typ only (JWT-SVID 2)", name)
		}
		if !ok {
			return parts{}, refuse(BadHeader, "its header's %s is not text", name)
		}
	}
	if !slices.Contains(algorithms, p.alg) {
		return parts{}, refuse(WrongAlgorithm, "its alg is %.100q; RS, ES and PS with 256, 384 or 512 are allowed (JWT-SVID 2.1)", string(p.alg))
	}
	if p.kid == "" {
		return parts{}, refuse(BadHeader, "its header names no key (kid)")
	}
	return p, nil
}

// decodeObject decodes one JSON object: no member twice at any depth, nested
// no deeper than maxDepth, valid UTF-8.
func decodeObject(raw []byte) (map[string]any, error) {
	if !utf8.Valid(raw) {
		return nil, fmt.Errorf("it is not UTF-8")
	}
	if deeper(raw) {
		return nil, fmt.Errorf("it is nested deeper than %d", maxDepth)
	}
	var object map[string]any
	if err := json.Unmarshal(raw, &object); err != nil {
		return nil, err
	}
	if object == nil {
		return nil, fmt.Errorf("it is no JSON object")
	}
	return object, nil
}

// deeper reports JSON nested deeper than maxDepth. Text may hold brackets.
func deeper(raw []byte) bool {
	depth, text := 0, false
	for i := 0; i < len(raw); i++ {
		switch c := raw[i]; {
		case text && c == '\\':
			i++
		case c == '"':
			text = !text
		case text:
		case c == '{' || c == '[':
			if depth++; depth > maxDepth {
				return true
			}
		case c == '}' || c == ']':
			depth--
		}
	}
	return false
}

// subject reads the claims far enough to know whose keys to try.
func (p parts) subject() (spiffeid.ID, map[string]any, error) {
	claims, err := decodeObject(p.payload)
	if err != nil {
		return spiffeid.ID{}, nil, refuse(BadClaims, "its claims: %v", err)
	}
	sub, ok := claims["sub"].(string)
	if !ok {
		return spiffeid.ID{}, nil, refuse(BadSubject, "it has no sub that is text (JWT-SVID 3.1)")
	}
	id, err := spiffeid.FromString(sub)
	if err != nil {
		return spiffeid.ID{}, nil, refuse(BadSubject, "its sub is not a SPIFFE ID: %v", err)
	}
	if id.Path() == "" {
		return spiffeid.ID{}, nil, refuse(BadSubject, "its sub %s is a trust domain and not a workload", id)
	}
	return id, claims, nil
}

// maxAudiences of one token.
const maxAudiences = 32

// read takes the registered claims (RFC 7519 4.1).
func (t *Token) read(claims map[string]any) error {
	var err error
	if t.ExpiresAt, err = date(claims, "exp"); err != nil {
		return err
	}
	if t.ExpiresAt.IsZero() {
		return refuse(BadClaims, "it has no exp (JWT-SVID 3.3)")
	}
	if t.NotBefore, err = date(claims, "nbf"); err != nil {
		return err
	}
	if t.IssuedAt, err = date(claims, "iat"); err != nil {
		return err
	}
	switch aud := claims["aud"].(type) {
	case nil:
	case string:
		t.Audience = []string{aud}
	case []any:
		for _, a := range aud {
			text, ok := a.(string)
			if !ok {
				return refuse(BadClaims, "its aud has an element that is not text")
			}
			t.Audience = append(t.Audience, text)
		}
	default:
		return refuse(BadClaims, "its aud is neither text nor an array of texts")
	}
	if len(t.Audience) == 0 {
		return refuse(WrongAudience, "it has no aud (JWT-SVID 3.2)")
	}
	if len(t.Audience) > maxAudiences {
		return refuse(BadClaims, "it has %d audiences, at most %d are looked at", len(t.Audience), maxAudiences)
	}
	return nil
}

// date reads a NumericDate; zero when it is not there.
func date(claims map[string]any, name string) (time.Time, error) {
	value, ok := claims[name]
	if !ok {
		return time.Time{}, nil
	}
	seconds, ok := value.(float64)
	if !ok {
		return time.Time{}, refuse(BadClaims, "its %s is not a number (RFC 7519 2, NumericDate)", name)
	}
	const year10000 = 253402300800
	if !(seconds >= 1 && seconds < year10000) {
		return time.Time{}, refuse(BadClaims, "its %s is no date of our time", name)
	}
	whole, rest := math.Modf(seconds)
	return time.Unix(int64(whole), int64(rest*1e9)), nil
}
