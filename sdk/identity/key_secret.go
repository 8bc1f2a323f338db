//go:build goexperiment.runtimesecret && linux && (amd64 || arm64)

package identity

import (
	"bytes"
	"crypto"
	"errors"
	"io"
	"runtime"
	"runtime/secret"

	"github.com/legation-io/legation/sdk/secretmem"
)

// held is the encoded key, in locked memory.
type held struct{ der *secretmem.Buffer }

func (k *Key) hold(_ crypto.Signer, der []byte) error {
	b, err := secretmem.From(der)
	if err != nil {
		return err
	}
	k.held.der = b
	runtime.AddCleanup(k, func(b *secretmem.Buffer) { b.Close() }, b)
	return nil
}

func (k *Key) sign(random io.Reader, digest []byte, options crypto.SignerOpts) (signature []byte, err error) {
	// What is made inside is erased; the signature and the error get out as
	// copies that were made outside.
	out := make([]byte, 0, maxSignature)
	failed := ""
	secret.Do(func() {
		signer, parseErr := parseKey(k.held.der.Bytes())
		if parseErr != nil {
			failed = "the key in locked memory does not parse any more"
			return
		}
		made, signErr := signer.Sign(random, digest, options)
		if signErr != nil {
			failed = signErr.Error()
			return
		}
		out = append(out, made...)
	})
	runtime.KeepAlive(k)
	if failed != "" {
		return nil, errors.New(string(bytes.Clone([]byte(failed))))
	}
	return out, nil
}

// maxSignature is that of RSA with 8,192 bits.
const maxSignature = 1024
