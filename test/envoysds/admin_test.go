package envoysds

import (
	"context"
	"encoding/json"
	"net"
	"net/http"

	"github.com/legation-io/legation/test/stand"
)

// serial is that of the workload certificate this Envoy presents.
func (p *proxy) serial() string {
	p.r.t.Helper()
	var answer struct {
		Certificates []struct {
			Chain []struct {
				Serial string `json:"serial_number"`
			} `json:"cert_chain"`
		} `json:"certificates"`
	}
	client := http.Client{Timeout: stand.Patience, Transport: &http.Transport{DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", p.socket)
		}}}
	resp, err := client.Get("http://envoy/certs")
	if err != nil {
		p.r.t.Fatal(err)
	}
	defer resp.Body.Close()
	if err := json.NewDecoder(resp.Body).Decode(&answer); err != nil {
		p.r.t.Fatal(err)
	}
	for _, c := range answer.Certificates {
		if len(c.Chain) > 0 {
			return c.Chain[0].Serial
		}
	}
	return ""
}
