package compile

import (
	"fmt"
	"strings"
	"testing"

	nodev1 "github.com/legation-io/legation/api/node/v1"
	"github.com/legation-io/legation/internal/catalog"
)

// world declares services with ten endpoints each.
func world(b *testing.B, services int) *catalog.Catalog {
	c := open(b)
	for from := 0; from < services; from += 50 {
		var y strings.Builder
		y.WriteString(oneIdentity)
		for n := from; n < from+50; n++ {
			fmt.Fprintf(&y, "---\napiVersion: v1\nkind: Service\nmetadata: {name: s%d, namespace: shop}\nspec: {clusterIP: 10.96.%d.%d, selector: {app: s%d}, ports: [{port: 80}]}\n", n, n/250, n%250+1, n)
			for e := range 10 {
				fmt.Fprintf(&y, "---\napiVersion: networking.istio.io/v1\nkind: WorkloadEntry\nmetadata: {name: w%d-%d, namespace: shop}\nspec: {address: 10.%d.%d.%d, labels: {app: s%d}, serviceAccount: s%d}\n", n, e, e+1, n/250, n%250+1, n, n)
			}
		}
		apply(b, c, y.String())
	}
	return c
}

// BenchmarkOneChangedEndpoint compiles a hundred captured proxies after one
// endpoint of 2,000 changed; applying it is part of the time.
func BenchmarkOneChangedEndpoint(b *testing.B) {
	for _, proxies := range []int{1, 100} {
		b.Run(fmt.Sprintf("proxies=%d", proxies), func(b *testing.B) {
			c := world(b, 200)
			n := 0
			b.ReportAllocs()
			for b.Loop() {
				n++
				s := apply(b, c, fmt.Sprintf("apiVersion: networking.istio.io/v1\nkind: WorkloadEntry\nmetadata: {name: w0-0, namespace: shop}\nspec: {address: 10.99.0.%d, labels: {app: s0}, serviceAccount: s0}\n", n%250+1))
				for p := range proxies {
					if _, err := Proxy(s, &nodev1.Subject{Id: fmt.Sprint(p), Entry: "shop/web", Mode: nodev1.Mode_MODE_CAPTURE, Inbound: []*nodev1.Inbound{{App: "127.0.0.1:80"}}}, testOptions); err != nil {
						b.Fatal(err)
					}
				}
			}
		})
	}
}
