package jwtcheck

import "testing"

func BenchmarkVerifyFromCache(b *testing.B) {
	v, keys, key := standard(b)
	token := forge(b, key, es, claims(b, `iat:1800000000`, `jti:"0123456789abcdef0123456789abcdef"`, `spiffe_id:"spiffe://example.org/web"`, `cluster:"default"`, `workload_name:"default/web"`))
	if _, err := v.Verify(keys, token, "db"); err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		if _, err := v.Verify(keys, token, "db"); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkVerify(b *testing.B) {
	v, keys, key := standard(b)
	v.cache.limit = -1
	token := forge(b, key, es, claims(b))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := v.Verify(keys, token, "db"); err != nil {
			b.Fatal(err)
		}
	}
}
