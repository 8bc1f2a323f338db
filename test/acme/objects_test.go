package acme

import (
	"context"
	"testing"

	workloadv1 "github.com/legation-io/legation/sdk/api/workload/v1"
	"github.com/legation-io/legation/sdk/workloadapi"
)

// objects are this process's, at an agent.
type objects struct{ c workloadv1.ObjectsClient }

func client(t testing.TB, socket string) objects {
	t.Helper()
	conn, err := workloadapi.Dial("unix://" + socket)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return objects{workloadv1.NewObjectsClient(conn)}
}

func (o objects) list(ctx context.Context, id string) ([]string, error) {
	res, err := o.c.List(ctx, &workloadv1.ListObjectsRequest{SpiffeId: id})
	var keys []string
	for _, object := range res.GetObjects() {
		keys = append(keys, object.Key)
	}
	return keys, err
}

func (o objects) put(ctx context.Context, id, key, value string) error {
	_, err := o.c.Put(ctx, &workloadv1.PutObjectRequest{SpiffeId: id, Key: key, Value: []byte(value)})
	return err
}
