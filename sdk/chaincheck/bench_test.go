package chaincheck

import (
	"context"
	"crypto/x509"
	"testing"
)

// The benchmarks stand beside BenchmarkSignatures: what an ordinary chain of
// two signatures costs beyond checking them.

func BenchmarkSignatures(b *testing.B) {
	w := newWorld(b)
	b.ReportAllocs()
	for b.Loop() {
		checkSignatures(b, w)
	}
}

func checkSignatures(b *testing.B, w *world) {
	if err := w.issuing.cert.CheckSignature(w.leaf.SignatureAlgorithm, w.leaf.RawTBSCertificate, w.leaf.Signature); err != nil {
		b.Fatal(err)
	}
	if err := w.root.cert.CheckSignature(w.issuing.cert.SignatureAlgorithm, w.issuing.cert.RawTBSCertificate, w.issuing.cert.Signature); err != nil {
		b.Fatal(err)
	}
}

// BenchmarkStandardLibrary is x509.Verify, which checks less.
func BenchmarkStandardLibrary(b *testing.B) {
	w := newWorld(b)
	roots, between := x509.NewCertPool(), x509.NewCertPool()
	roots.AddCert(w.root.cert)
	between.AddCert(w.issuing.cert)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := w.leaf.Verify(x509.VerifyOptions{Roots: roots, Intermediates: between, CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}); err != nil {
			b.Fatal(err)
		}
	}
}

func benchmarkVerify(b *testing.B, bend func(*world)) {
	w := newWorld(b)
	if bend != nil {
		bend(w)
	}
	b.ReportAllocs()
	for b.Loop() {
		if _, err := Verify(w.params); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkVerify is with current lists.
func BenchmarkVerify(b *testing.B) { benchmarkVerify(b, nil) }

func BenchmarkVerifyRevocationOff(b *testing.B) {
	benchmarkVerify(b, func(w *world) { w.params.Revocation, w.params.CRLs = Off, nil })
}

func BenchmarkVerifyDenySet100k(b *testing.B) {
	benchmarkVerify(b, func(w *world) { w.params.Denied = many(b, 50_000) })
}

func BenchmarkVerifyOCSPRemembered(b *testing.B) {
	benchmarkVerify(b, func(w *world) {
		w.present(w.issuing.leaf(b, withURL))
		w.params.CRLs = crls(b, w.root.crl(b, 1, nil))
		fetcher := &responders{}
		fetcher.set(says(b, w.issuing.answer(w.leaf, by(w.issuing.responder(b, nil)))))
		w.params.OCSP = newOCSP(b, OCSPConfig{Fetcher: fetcher})
	})
}

func BenchmarkVerifyStapled(b *testing.B) {
	benchmarkVerify(b, func(w *world) {
		w.params.CRLs = crls(b, w.root.crl(b, 1, nil))
		w.params.Staple = w.issuing.staple(b, w.leaf)
	})
}

func benchmarkVerifier(b *testing.B, bend func(*world, *VerifierConfig, *Trust) (staple []byte)) {
	w := newWorld(b)
	config, trust := VerifierConfig{Usage: Client, Now: newClock().Now}, &Trust{Roots: w.params.Roots, CRLs: w.params.CRLs}
	var staple []byte
	if bend != nil {
		staple = bend(w, &config, trust)
	}
	v, chain := NewVerifier(config), w.params.Chain
	b.ReportAllocs()
	for b.Loop() {
		if _, err := v.Verify(context.Background(), trust, chain, staple); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkRemembered(b *testing.B) { benchmarkVerifier(b, nil) }

func BenchmarkRememberedDenySet100k(b *testing.B) {
	benchmarkVerifier(b, func(_ *world, _ *VerifierConfig, t *Trust) []byte { t.Denied = many(b, 50_000); return nil })
}

func BenchmarkRememberedOCSP(b *testing.B) {
	benchmarkVerifier(b, func(w *world, c *VerifierConfig, t *Trust) []byte {
		w.present(w.issuing.leaf(b, withURL))
		t.CRLs = crls(b, w.root.crl(b, 1, nil))
		fetcher := &responders{}
		fetcher.set(says(b, w.issuing.answer(w.leaf)))
		c.OCSP = newOCSP(b, OCSPConfig{Fetcher: fetcher})
		return nil
	})
}

func BenchmarkRememberedStaple(b *testing.B) {
	benchmarkVerifier(b, func(w *world, _ *VerifierConfig, t *Trust) []byte {
		t.CRLs = crls(b, w.root.crl(b, 1, nil))
		return w.issuing.staple(b, w.leaf)
	})
}

func BenchmarkDenySetMiss100k(b *testing.B) {
	w := newWorld(b)
	set, path := many(b, 50_000), []*x509.Certificate{w.leaf, w.issuing.cert, w.root.cert}
	result, err := Verify(w.params)
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		if _, denied := set.Lookup(result.ID, path); denied {
			b.Fatal("denied")
		}
	}
}

// TestVerifyCostsItsSignatureChecks holds the ratio loosely: this is a bound
// against mistakes, the benchmarks measure.
func TestVerifyCostsItsSignatureChecks(t *testing.T) {
	w := newWorld(t)
	if result := wantCause(t, w.params, ""); result.Work.Steps > 4 {
		t.Errorf("an ordinary chain takes %+v", result.Work)
	}
	if again := wantCause(t, w.params, "").Work; again.Signatures != 2 || again.Comparisons != 0 {
		t.Errorf("an ordinary chain takes %+v", again)
	}
	bare := testing.AllocsPerRun(20, func() {
		_ = w.issuing.cert.CheckSignature(w.leaf.SignatureAlgorithm, w.leaf.RawTBSCertificate, w.leaf.Signature)
		_ = w.root.cert.CheckSignature(w.issuing.cert.SignatureAlgorithm, w.issuing.cert.RawTBSCertificate, w.issuing.cert.Signature)
	})
	fetcher := &responders{}
	w.present(w.issuing.leaf(t, withURL))
	fetcher.set(says(t, w.issuing.answer(w.leaf)))
	remembered := w.params
	remembered.CRLs = crls(t, w.root.crl(t, 1, nil))
	remembered.OCSP = newOCSP(t, OCSPConfig{Fetcher: fetcher})
	denied := w.params
	denied.Denied = many(t, 100)
	for name, p := range map[string]Params{"lists": w.params, "a deny set": denied, "a remembered OCSP answer": remembered} {
		wantCause(t, p, "")
		allocations := testing.AllocsPerRun(20, func() { _, _ = Verify(p) })
		if extra := allocations - bare; extra > 32 {
			t.Errorf("with %s it allocates %.0f times beyond its signature checks", name, extra)
		}
	}
}
