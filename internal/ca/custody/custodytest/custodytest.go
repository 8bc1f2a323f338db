// Package custodytest is the suite that every custody provider passes.
package custodytest

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/sha256"
	"fmt"
	"strings"
	"sync"
	"testing"

	"github.com/legation-io/legation/internal/ca/custody"
	"github.com/legation-io/legation/internal/fault"
)

// Run runs the suite. open returns the provider as a fresh process would see
// it: every call within one subtest sees the same keys.
func Run(t *testing.T, fresh func(t *testing.T) (open func() custody.Provider)) {
	ctx := context.Background()

	for _, alg := range []custody.Algorithm{custody.ECDSAP256, custody.ECDSAP384} {
		t.Run(fmt.Sprintf("a created %s key signs, and signs the same after a restart", alg), func(t *testing.T) {
			open := fresh(t)
			created, err := open().Create(ctx, "default/issuing-1", alg)
			if err != nil {
				t.Fatal(err)
			}
			opened, err := open().Open(ctx, "default/issuing-1")
			if err != nil {
				t.Fatal(err)
			}
			for _, signer := range []crypto.Signer{created, opened} {
				verify(t, created.Public(), signer)
			}
		})
	}

	t.Run("a name is never reused", func(t *testing.T) {
		open := fresh(t)
		first, err := open().Create(ctx, "default/root", custody.ECDSAP256)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := open().Create(ctx, "default/root", custody.ECDSAP256); !fault.Is(err, fault.Conflict) {
			t.Fatalf("second Create = %v, want conflict", err)
		}
		still, err := open().Open(ctx, "default/root")
		if err != nil {
			t.Fatal(err)
		}
		verify(t, first.Public(), still)
	})

	t.Run("of many that create one name exactly one wins", func(t *testing.T) {
		p := fresh(t)()
		var wg sync.WaitGroup
		var mu sync.Mutex
		won := 0
		for range 16 {
			wg.Go(func() {
				_, err := p.Create(ctx, "default/raced", custody.ECDSAP256)
				mu.Lock()
				defer mu.Unlock()
				switch {
				case err == nil:
					won++
				case !fault.Is(err, fault.Conflict):
					t.Errorf("Create = %v, want conflict", err)
				}
			})
		}
		wg.Wait()
		if won != 1 {
			t.Errorf("%d callers created the key, want 1", won)
		}
	})

	t.Run("an absent key is not found", func(t *testing.T) {
		if _, err := fresh(t)().Open(ctx, "default/absent"); !fault.Is(err, fault.NotFound) {
			t.Errorf("Open = %v, want not found", err)
		}
	})

	t.Run("bad names and algorithms are invalid", func(t *testing.T) {
		p := fresh(t)()
		for _, name := range []string{"", "/", "a//b", "../x", "UPPER", "a/b/c/d/e", "sp ace", strings.Repeat("x", 80), "nul\x00"} {
			if _, err := p.Create(ctx, name, custody.ECDSAP256); !fault.Is(err, fault.Invalid) {
				t.Errorf("Create(%q) = %v, want invalid", name, err)
			}
			if _, err := p.Open(ctx, name); !fault.Is(err, fault.Invalid) {
				t.Errorf("Open(%q) = %v, want invalid", name, err)
			}
		}
		if _, err := p.Create(ctx, "default/rsa", "rsa-1024"); !fault.Is(err, fault.Invalid) {
			t.Errorf("Create(rsa-1024) = %v, want invalid", err)
		}
	})

	t.Run("a signer serves many at once", func(t *testing.T) {
		signer, err := fresh(t)().Create(ctx, "default/busy", custody.ECDSAP256)
		if err != nil {
			t.Fatal(err)
		}
		var wg sync.WaitGroup
		for range 8 {
			wg.Go(func() { verify(t, signer.Public(), signer) })
		}
		wg.Wait()
	})
}

func verify(t *testing.T, public crypto.PublicKey, signer crypto.Signer) {
	t.Helper()
	digest := sha256.Sum256([]byte("what is signed"))
	signature, err := signer.Sign(rand.Reader, digest[:], crypto.SHA256)
	if err != nil {
		t.Error(err)
		return
	}
	key, ok := public.(*ecdsa.PublicKey)
	if !ok {
		t.Errorf("public key is a %T", public)
		return
	}
	if !ecdsa.VerifyASN1(key, digest[:], signature) {
		t.Error("the signature does not verify with the created key")
	}
	if !key.Equal(signer.Public()) {
		t.Error("the opened key differs from the created one")
	}
}
