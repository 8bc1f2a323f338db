package light_test

import (
	"testing"
	"time"

	workloadv1 "github.com/legation-io/legation/sdk/api/workload/v1"
	"github.com/legation-io/legation/sdk/internal/fakeapi"
	"github.com/legation-io/legation/sdk/internal/pkitest"
	"github.com/legation-io/legation/sdk/light"
)

func TestOneAnswerIsAnIdentity(t *testing.T) {
	for name, extensions := range map[string]bool{"Legation's socket": true, "SPIRE's socket": false} {
		t.Run(name, func(t *testing.T) {
			d := pkitest.New(t, "example.org", nil)
			api := fakeapi.New(t)
			api.Start(extensions)
			api.Revoke(&workloadv1.RevocationSet{})
			own := d.Issue("/a", nil)
			api.Answer(fakeapi.X509(t, d, own))
			for range 3 {
				begun := time.Now()
				s, sizes, err := light.FetchSizes(t.Context(), light.Config{Addr: api.Addr()})
				if err != nil {
					t.Fatal(err)
				}
				t.Log(time.Since(begun), sizes)
				if s.ID != d.ID("/a") || !s.Certificate.Leaf.Equal(own.Leaf) || (s.Trust.Denied != nil) != extensions {
					t.Errorf("%+v", s)
				}
			}
		})
	}
}
