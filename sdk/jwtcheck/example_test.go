package jwtcheck_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"log"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/legation-io/legation/sdk/jwtcheck"
)

// A token is verified with the keys of the trust domains that are believed,
// for the name that this service goes by.
func Example() {
	token, jwks := issue("spiffe://example.org/ns/shop/sa/web", "spiffe://example.org/ns/shop/sa/orders")

	bundle, err := jwtcheck.ParseBundle(spiffeid.RequireTrustDomainFromString("example.org"), jwks)
	if err != nil {
		log.Fatal(err)
	}
	keys := jwtcheck.NewKeys(bundle)
	verifier := jwtcheck.New(jwtcheck.Config{})

	verified, err := verifier.Verify(keys, token, "spiffe://example.org/ns/shop/sa/orders")
	if err != nil {
		log.Fatal(err)
	}
	team, _ := verified.Claim("team")
	fmt.Println(verified.ID, team)

	_, err = verifier.Verify(keys, token, "spiffe://example.org/ns/shop/sa/billing")
	var refused *jwtcheck.Error
	fmt.Println(errors.As(err, &refused), refused.Cause)
	// Output:
	// spiffe://example.org/ns/shop/sa/web checkout
	// true wrong_audience
}

// issue stands for the authority.
func issue(subject, audience string) (token string, jwks []byte) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		log.Fatal(err)
	}
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.ES256, Key: jose.JSONWebKey{Key: key, KeyID: "k1"}}, nil)
	if err != nil {
		log.Fatal(err)
	}
	token, err = jwt.Signed(signer).Claims(jwt.Claims{
		Subject: subject, Audience: jwt.Audience{audience}, Expiry: jwt.NewNumericDate(time.Now().Add(5 * time.Minute)),
	}).Claims(map[string]any{"team": "checkout"}).Serialize()
	if err != nil {
		log.Fatal(err)
	}
	jwks, err = json.Marshal(jose.JSONWebKeySet{Keys: []jose.JSONWebKey{{Key: key.Public(), KeyID: "k1", Use: "jwt-svid"}}})
	if err != nil {
		log.Fatal(err)
	}
	return token, jwks
}
