package workloadapi_test

import (
	"context"
	"errors"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	"google.golang.org/grpc/metadata"

	"github.com/legation-io/legation/sdk/workloadapi"
)

func TestDialSendsTheSecurityHeaderOnce(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	a := newAgent()
	defer a.serve(t, path)()
	conn, err := workloadapi.Dial("unix://" + path)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	client := workload.NewSpiffeWorkloadAPIClient(conn)
	for name, own := range map[string]bool{"by itself": false, "set by the caller, too": true} {
		ctx, end := context.WithTimeout(t.Context(), time.Minute)
		a.answers <- answer(t, "spiffe://example.org/a")
		if own {
			ctx = metadata.AppendToOutgoingContext(ctx, headerName, "true")
		}
		stream, err := client.FetchX509SVID(ctx, &workload.X509SVIDRequest{})
		if err == nil {
			_, err = stream.Recv()
		}
		if err != nil {
			t.Errorf("%s: %v", name, err)
		}
		a.fail <- errors.New("enough") // so that no old call takes the next answer
		for err == nil {
			_, err = stream.Recv()
		}
		end()
	}
}

const headerName = "workload.spiffe.io"

func TestAnAddressIsRefusedWithWhatIsWrong(t *testing.T) {
	t.Setenv("SPIFFE_ENDPOINT_SOCKET", "")
	for addr, want := range map[string]string{
		"":              "SPIFFE_ENDPOINT_SOCKET",
		"http://x":      "http://x",
		"unix:relative": "unix:relative",
		"tcp://host:1":  "tcp://host:1",
	} {
		if _, err := workloadapi.Dial(addr); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: error %v does not say %s", addr, err, want)
		}
	}
}
