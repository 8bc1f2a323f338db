package ca

import (
	"context"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"fmt"
	"runtime"
	"testing"
	"time"
)

// BenchmarkSignX509 prints, beside each size of batch, the ratio to the raw
// limit: verify the CSR's signature, sign, verify what was signed, on as many
// cores. Budget: at least 0.60.
func BenchmarkSignX509(b *testing.B) {
	a := newWorld(b).replica()
	raw := rawLimit(b)
	for _, size := range []int{1, 50} {
		b.Run(fmt.Sprintf("batch=%d", size), func(b *testing.B) {
			reqs := make([]X509Request, size)
			for i := range reqs {
				reqs[i] = requestFor(b, idOf(fmt.Sprintf("/ns/default/sa/w%d", i)))
			}
			a.SignX509(context.Background(), reqs) // lint
			b.ReportAllocs()
			b.ResetTimer()
			if size == 1 {
				b.RunParallel(func(pb *testing.PB) {
					for pb.Next() {
						if err := a.SignX509(context.Background(), reqs)[0].Err; err != nil {
							b.Error(err)
						}
					}
				})
			} else {
				for range b.N {
					if err := a.SignX509(context.Background(), reqs)[0].Err; err != nil {
						b.Fatal(err)
					}
				}
			}
			each := b.Elapsed() / time.Duration(b.N*size) * time.Duration(runtime.GOMAXPROCS(0))
			b.ReportMetric(float64(each.Microseconds()), "core-µs/cert")
			b.ReportMetric(float64(raw)/float64(each), "of-raw-limit")
		})
	}
}

// rawLimit is the core time of the three operations that cannot be left out.
func rawLimit(b *testing.B) time.Duration {
	b.Helper()
	key := newKey(b)
	csr, err := x509.ParseCertificateRequest(newCSR(b, key))
	if err != nil {
		b.Fatal(err)
	}
	const n = 2000
	done := make(chan error)
	start := time.Now()
	for range runtime.GOMAXPROCS(0) {
		go func() {
			for range n {
				tbs := sha256.Sum256(csr.RawTBSCertificateRequest)
				if !ecdsa.VerifyASN1(&key.PublicKey, tbs[:], csr.Signature) {
					done <- fmt.Errorf("the CSR does not verify")
					return
				}
				signature, err := ecdsa.SignASN1(rand.Reader, key, tbs[:])
				if err != nil || !ecdsa.VerifyASN1(&key.PublicKey, tbs[:], signature) {
					done <- fmt.Errorf("the signature does not verify: %w", err)
					return
				}
			}
			done <- nil
		}()
	}
	for range runtime.GOMAXPROCS(0) {
		if err := <-done; err != nil {
			b.Fatal(err)
		}
	}
	return time.Since(start) / n
}
