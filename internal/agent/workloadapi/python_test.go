package workloadapi

import (
	"context"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/legation-io/legation/internal/pythontest"
)

// pySpiffe is the PyPI client this is tested with.
const pySpiffe = "spiffe==0.3.2"

const pythonProgram = `
import sys
from spiffe import WorkloadApiClient, SpiffeId
with WorkloadApiClient(socket_path="unix://" + sys.argv[1]) as client:
    svid = client.fetch_x509_svid(timeout=10)
    print("x509", svid.spiffe_id)
    context = client.fetch_x509_context(timeout=10)
    for bundle in context.x509_bundle_set.bundles:
        print("roots", len(bundle.x509_authorities))
    token = client.fetch_jwt_svid(audience={"db"})
    print("jwt", token.spiffe_id)
    bundles = client.fetch_jwt_bundles(timeout=10)
    print("validated", client.validate_jwt_svid(token.token, audience="db").spiffe_id)
    try:
        client.validate_jwt_svid(token.token, audience="other")
    except Exception as e:
        print("refused", type(e).__name__)
`

func TestPythonClient(t *testing.T) {
	packages := pythontest.Install(t, pySpiffe)
	a := serve(t, Limits{}, webEntry())
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "python3", "-c", pythonProgram, a.socket)
	cmd.Env = append(os.Environ(), "PYTHONPATH="+packages)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	id := webEntry().SpiffeId
	for _, want := range []string{"x509 " + id, "roots 1", "jwt " + id, "validated " + id, "refused "} {
		if !strings.Contains(string(out), want) {
			t.Errorf("misses %q:\n%s", want, out)
		}
	}
}
