package ca

import (
	"context"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"fmt"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// BenchmarkSignX509 prints, for the store in memory and the one on disk and
// each size of batch, the CPU time of one certificate, durable and recorded,
// and the ratio to the raw limit: verify the CSR's signature, sign, verify
// what was signed. Budget: at least 0.60.
func BenchmarkSignX509(b *testing.B) {
	raw := rawLimit(b)
	for _, disk := range []bool{false, true} {
		w := newWorld(b)
		name := "memory"
		if disk {
			name = "etcd"
			var closeStore func()
			w, closeStore = onDisk(b, b.TempDir())
			defer closeStore()
		}
		a := w.replica()
		for _, size := range []int{1, 50} {
			reqs := make([]X509Request, size)
			for i := range reqs {
				reqs[i] = requestFor(b, idOf(fmt.Sprintf("/ns/default/sa/w%d", i)))
			}
			a.SignX509(context.Background(), reqs) // lint
			b.Run(fmt.Sprintf("%s/batch=%d", name, size), func(b *testing.B) {
				b.ReportAllocs()
				b.SetParallelism(256 / size) // callers that wait for the disk cost no core
				b.ResetTimer()
				before := cpuTime(b)
				b.RunParallel(func(pb *testing.PB) {
					for pb.Next() {
						if err := a.SignX509(context.Background(), reqs)[0].Err; err != nil {
							b.Error(err)
						}
					}
				})
				each := (cpuTime(b) - before) / time.Duration(b.N*size)
				b.ReportMetric(float64(b.N*size)/b.Elapsed().Seconds(), "certs/s")
				b.ReportMetric(float64(each.Microseconds()), "core-µs/cert")
				b.ReportMetric(float64(raw)/float64(each), "of-raw-limit")
			})
		}
	}
}

// cpuTime is what this process used so far, all cores.
func cpuTime(b *testing.B) time.Duration {
	b.Helper()
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
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
	before := cpuTime(b)
	for range n {
		tbs := sha256.Sum256(csr.RawTBSCertificateRequest)
		if !ecdsa.VerifyASN1(&key.PublicKey, tbs[:], csr.Signature) {
			b.Fatal("the CSR does not verify")
		}
		signature, err := ecdsa.SignASN1(rand.Reader, key, tbs[:])
		if err != nil || !ecdsa.VerifyASN1(&key.PublicKey, tbs[:], signature) {
			b.Fatalf("the signature does not verify: %v", err)
		}
	}
	return (cpuTime(b) - before) / n
}

// BenchmarkRevoke is an identity's revocation on the store on disk: what an
// operator waits for before anything is pushed.
func BenchmarkRevoke(b *testing.B) {
	w, closeStore := onDisk(b, b.TempDir())
	defer closeStore()
	a := w.replica()
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	wg.Go(func() { _ = a.Run(ctx) })
	wg.Go(func() { _ = a.journal.Run(ctx) })
	for i := range b.N {
		b.StopTimer()
		id := idOf(fmt.Sprintf("/w%d", i))
		sign(b, a, requestFor(b, id))
		b.StartTimer()
		if _, err := a.Revoke(ctx, RevokeRequest{ID: id}); err != nil {
			b.Fatal(err)
		}
	}
}
