package catalog

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	sigsjson "sigs.k8s.io/json"

	adminv1 "github.com/legation-io/legation/api/admin/v1"
	"github.com/legation-io/legation/internal/store"
)

// object is one stored resource, parsed and checked.
type object struct {
	kind           *kind
	typed          metav1.Object
	json           []byte
	revision       int64
	createRevision int64
}

func (o *object) id() string { return objectID(o.kind, o.typed.GetNamespace(), o.typed.GetName()) }

// objectID is the key of a resource within a snapshot.
func objectID(k *kind, namespace, name string) string { return k.plural + "/" + namespace + "/" + name }

func (o *object) proto() *adminv1.Object {
	return &adminv1.Object{Kind: o.kind.name, Namespace: o.typed.GetNamespace(), Name: o.typed.GetName(),
		Json: o.json, Revision: o.revision}
}

// valueVersion is the version of stored values: the resource as JSON.
const valueVersion = 1

// marshal is the JSON of a resource as it is stored and shown.
func marshal(k *kind, o metav1.Object) ([]byte, error) {
	b, err := json.Marshal(o)
	if err != nil {
		return nil, fmt.Errorf("marshal %s %s/%s: %w", k.name, o.GetNamespace(), o.GetName(), err)
	}
	// Kubernetes types write an empty status; it declares nothing.
	if len(k.drop) == 0 {
		return b, nil
	}
	var fields map[string]json.RawMessage
	if err := json.Unmarshal(b, &fields); err != nil {
		return nil, fmt.Errorf("marshal %s %s/%s: %w", k.name, o.GetNamespace(), o.GetName(), err)
	}
	for _, name := range k.drop {
		delete(fields, name)
	}
	return json.Marshal(fields)
}

// parse reads a stored value as strictly as it was written: what a newer
// version or a broken disk wrote is not guessed at.
func parse(td spiffeid.TrustDomain, key store.Key, kv store.KV) (*object, error) {
	k, ok := kindByPlural(key.Kind)
	if !ok {
		return nil, fmt.Errorf("unknown kind %q", key.Kind)
	}
	_, value, err := store.DecodeAs(k.plural, valueVersion, kv.Value)
	if err != nil {
		return nil, err
	}
	typed := k.make()
	mistakes, err := sigsjson.UnmarshalStrict(value, typed)
	if err = errors.Join(append(mistakes, err)...); err != nil {
		return nil, err
	}
	d := &declared{kind: k, object: typed, stored: true}
	if problems := check(td, d); len(problems) > 0 {
		sentences := make([]string, len(problems))
		for i, p := range problems {
			sentences[i] = p.Field + ": " + p.Message
		}
		return nil, errors.New(strings.Join(sentences, "; "))
	}
	var meta metav1.TypeMeta
	if err := json.Unmarshal(value, &meta); err != nil || meta.Kind != k.name || meta.APIVersion != k.apiVersion ||
		typed.GetNamespace() != key.Namespace || typed.GetName() != key.Name {
		return nil, fmt.Errorf("the value is %s %s %s/%s, stored under another name", meta.APIVersion, meta.Kind, typed.GetNamespace(), typed.GetName())
	}
	return &object{kind: k, typed: typed, json: value, revision: kv.Revision, createRevision: kv.CreateRevision}, nil
}
