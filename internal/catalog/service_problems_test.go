package catalog

import (
	"strings"
	"testing"
)

func TestAServiceSaysWhichOfItsEndpointsAreNotAsWritten(t *testing.T) {
	const service = "apiVersion: v1\nkind: Service\nmetadata: {name: api}\nspec: {selector: {app: api}, ports: [{name: http, port: 80, targetPort: 8080}]}\n---\n"
	const entry = "apiVersion: networking.istio.io/v1\nkind: WorkloadEntry\nmetadata: {name: api-1}\nspec: {address: 10.0.0.1, labels: {app: api}%s}\n"
	for _, tt := range []struct {
		name, spec string
		port       uint16 // 0: no endpoint
		want       string // in a problem; "": none
	}{
		{"the port by the Service's name for it", ", serviceAccount: api, ports: {http: 15443}", 15443, ""},
		{"no ports: the target port", ", serviceAccount: api", 8080, ""},
		{"a port by its number is not what is connected to", `, serviceAccount: api, ports: {"80": 15443}`, 8080, `names the ports 80, and port 80 of the Service has the name "http": 8080 is connected to`},
		{"nobody is expected there", "", 0, "takes no traffic: nothing says which SPIFFE ID is expected there"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := open(t, newStore(t), Limits{})
			apply(t, c, service+strings.Replace(entry, "%s", tt.spec, 1))
			s, _ := c.Snapshot()
			svc, _ := s.Service("default", "api")
			p, _ := svc.Port(80)
			if tt.port == 0 && len(p.Endpoints) != 0 || tt.port != 0 && (len(p.Endpoints) != 1 || p.Endpoints[0].Port != tt.port) {
				t.Errorf("endpoints %v", p.Endpoints)
			}
			if said := strings.Join(svc.Problems, "\n"); tt.want == "" && said != "" || !strings.Contains(said, tt.want) {
				t.Errorf("problems %q; want %q", said, tt.want)
			}
		})
	}
}
