package catalog

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

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
	if !json.Valid(value) {
		return nil, errors.New("the value is not JSON")
	}
	r := read("", value, key.Namespace)
	problems := r.problems
	if len(problems) == 0 && len(r.declared) == 1 {
		problems = check(td, r.declared[0])
	}
	if len(problems) > 0 {
		sentences := make([]string, len(problems))
		for i, p := range problems {
			sentences[i] = p.Field + ": " + p.Message
		}
		return nil, errors.New(strings.Join(sentences, "; "))
	}
	if len(r.declared) != 1 {
		return nil, fmt.Errorf("the value holds %d resources, not one", len(r.declared))
	}
	d := r.declared[0]
	if d.kind != k || d.object.GetNamespace() != key.Namespace || d.object.GetName() != key.Name {
		return nil, fmt.Errorf("the value is %s %s/%s, stored under another name", d.kind.name, d.object.GetNamespace(), d.object.GetName())
	}
	return &object{kind: k, typed: d.object, json: value, revision: kv.Revision, createRevision: kv.CreateRevision}, nil
}
