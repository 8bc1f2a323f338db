//go:build !goexperiment.runtimesecret || !linux || !(amd64 || arm64)

package identity

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"math/big"
	"runtime"
	"slices"
	"testing"
	"time"
)

func TestAKeyThatNobodyHoldsIsOverwritten(t *testing.T) {
	var numbers []big.Word
	func() {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		der, err := x509.MarshalPKCS8PrivateKey(key)
		if err != nil {
			t.Fatal(err)
		}
		k, err := LoadKey(der)
		if err != nil {
			t.Fatal(err)
		}
		//lint:ignore SA1019 the words of the key on the heap are what is looked for
		numbers = k.held.signer.(*ecdsa.PrivateKey).D.Bits()
		if !slices.ContainsFunc(numbers, func(w big.Word) bool { return w != 0 }) {
			t.Fatal("this tests nothing")
		}
		runtime.KeepAlive(k)
	}()
	for range 1000 {
		runtime.GC()
		if !slices.ContainsFunc(numbers, func(w big.Word) bool { return w != 0 }) {
			return
		}
		time.Sleep(time.Millisecond)
	}
	t.Error("the numbers are still there")
}
