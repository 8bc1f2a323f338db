//go:build !goexperiment.runtimesecret || !linux || !(amd64 || arm64)

package identity

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"io"
	"math/big"
	"runtime"
)

// held is the parsed key.
type held struct{ signer crypto.Signer }

func (k *Key) hold(signer crypto.Signer, _ []byte) error {
	k.held.signer = signer
	// The cleanup knows the numbers and not the Key, or it would never run.
	switch s := signer.(type) {
	case *ecdsa.PrivateKey:
		//lint:ignore SA1019 nobody signs with it any more; it is overwritten, not used
		runtime.AddCleanup(k, wipe, s.D.Bits())
	case *rsa.PrivateKey:
		runtime.AddCleanup(k, wipe, s.D.Bits())
		for _, prime := range s.Primes {
			runtime.AddCleanup(k, wipe, prime.Bits())
		}
	case ed25519.PrivateKey:
		runtime.AddCleanup(k, func(seed []byte) { clear(seed) }, []byte(s))
	}
	return nil
}

func wipe(number []big.Word) { clear(number) }

func (k *Key) sign(random io.Reader, digest []byte, options crypto.SignerOpts) ([]byte, error) {
	signature, err := k.held.signer.Sign(random, digest, options)
	runtime.KeepAlive(k) // or the cleanup might come in the middle
	return signature, err
}
