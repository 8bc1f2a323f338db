package chaincheck

import (
	"testing"
)

// BenchmarkVerify and BenchmarkSignatures stand beside each other: what an
// ordinary chain with current lists costs beyond its two signature checks.
func BenchmarkVerify(b *testing.B) {
	w := newWorld(b)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := Verify(w.params); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkSignatures(b *testing.B) {
	w := newWorld(b)
	b.ReportAllocs()
	for b.Loop() {
		if err := w.issuing.cert.CheckSignature(w.leaf.SignatureAlgorithm, w.leaf.RawTBSCertificate, w.leaf.Signature); err != nil {
			b.Fatal(err)
		}
		if err := w.root.cert.CheckSignature(w.issuing.cert.SignatureAlgorithm, w.issuing.cert.RawTBSCertificate, w.issuing.cert.Signature); err != nil {
			b.Fatal(err)
		}
	}
}

// TestVerifyCostsItsSignatureChecks holds the ratio loosely: this is a bound
// against mistakes, the benchmark measures.
func TestVerifyCostsItsSignatureChecks(t *testing.T) {
	w := newWorld(t)
	if result := wantCause(t, w.params, ""); result.Work.Steps > 4 {
		t.Errorf("an ordinary chain takes %+v", result.Work)
	}
	if again := wantCause(t, w.params, "").Work; again.Signatures != 2 || again.Comparisons != 0 {
		t.Errorf("an ordinary chain takes %+v", again)
	}
	allocations := testing.AllocsPerRun(20, func() { _, _ = Verify(w.params) })
	bare := testing.AllocsPerRun(20, func() {
		_ = w.issuing.cert.CheckSignature(w.leaf.SignatureAlgorithm, w.leaf.RawTBSCertificate, w.leaf.Signature)
		_ = w.root.cert.CheckSignature(w.issuing.cert.SignatureAlgorithm, w.issuing.cert.RawTBSCertificate, w.issuing.cert.Signature)
	})
	if extra := allocations - bare; extra > 32 {
		t.Errorf("it allocates %.0f times beyond its signature checks", extra)
	}
}
