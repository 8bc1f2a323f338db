package spiffeclients

import (
	"strings"
	"testing"

	"github.com/legation-io/legation/internal/pythontest"
	"github.com/legation-io/legation/test/stand"
)

// pySpiffe is the PyPI client this is tested with.
const pySpiffe = "spiffe==0.3.2"

const pythonProgram = `
import sys, time
from spiffe import WorkloadApiClient, X509Source, JwtSource, JwtSvid, TrustDomain
socket = "unix://" + sys.argv[1]
with WorkloadApiClient(socket_path=socket) as client:
    svid = client.fetch_x509_svid(timeout=10)
    print("x509", svid.spiffe_id, len(svid.cert_chain))
    for bundle in client.fetch_x509_bundles(timeout=10).bundles:
        print("roots", bundle.trust_domain, len(bundle.x509_authorities))
    token = client.fetch_jwt_svid(audience={"db"})
    print("jwt", token.spiffe_id, sorted(token.audience))
    print("validated by the agent", client.validate_jwt_svid(token.token, audience="db").spiffe_id)
    bundle = client.fetch_jwt_bundles(timeout=10).get_bundle_for_trust_domain(TrustDomain("example.org"))
    print("validated here", JwtSvid.parse_and_validate(token.token, bundle, {"db"}).spiffe_id)
    try:
        client.validate_jwt_svid(token.token, audience="other")
        print("accepted for another audience")
    except Exception as e:
        print("refused", type(e).__name__)
with X509Source(socket_path=socket, timeout_in_seconds=20) as source:
    first = source.svid.cert_chain[0].serial_number
    print("watching", flush=True)
    for _ in range(2000):
        if source.svid.cert_chain[0].serial_number != first:
            print("rotated", flush=True)
            break
        time.sleep(0.01)
`

func TestPythonClient(t *testing.T) {
	packages := pythontest.Install(t, pySpiffe)
	s := stand.New(t)
	a := s.Agent("node-1")
	s.Apply(identity("1h"))
	t.Setenv("PYTHONPATH", packages)
	p := stand.Start(t, "python", "python3", "-c", pythonProgram, a.Socket)
	p.Logged("watching")
	s.Apply(identity("2h"))
	p.Logged("rotated")
	for _, want := range []string{"x509 " + web.String() + " 2", "roots example.org 1", "jwt " + web.String() + " ['db']",
		"validated by the agent " + web.String(), "validated here " + web.String(), "refused "} {
		if !strings.Contains(p.Log(), want) {
			t.Errorf("misses %q:\n%s", want, p.Log())
		}
	}
}
