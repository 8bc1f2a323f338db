// Package storetest is what every renewal.Store must do, as tests.
package storetest

import (
	"context"
	"errors"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/legation-io/legation/sdk/renewal"
)

// Backend is an empty Store and how certificates are declared in it.
type Backend struct {
	Store  renewal.Store
	Apply  func(*renewal.Certificate)
	Delete func(renewal.Key)
}

// Certificate is a valid one.
func Certificate(name string) *renewal.Certificate {
	return &renewal.Certificate{
		APIVersion: renewal.APIVersion, Kind: renewal.Kind, Metadata: renewal.ObjectMeta{Namespace: "shop", Name: name},
		Spec: renewal.CertificateSpec{SecretName: name + "-tls", DNSNames: []string{name + ".example.org"}, IssuerRef: renewal.IssuerRef{Name: "ca"},
			PrivateKey: &renewal.CertificatePrivateKey{Algorithm: renewal.ECDSA}},
	}
}

// patience is how long something may take to be noticed.
const patience = time.Minute

// Run runs the suite; open makes a new Backend.
func Run(t *testing.T, open func(t *testing.T) Backend) {
	key := renewal.Key{Namespace: "shop", Name: "a"}
	for _, tt := range []struct {
		name string
		test func(t *testing.T, b Backend)
	}{
		{"what is not there is ErrNotFound, and deleting it is no error", func(t *testing.T, b Backend) {
			if _, err := b.Store.Get(t.Context(), key); !errors.Is(err, renewal.ErrNotFound) {
				t.Error(err)
			}
			if _, err := b.Store.GetSecret(t.Context(), "shop", "a"); !errors.Is(err, renewal.ErrNotFound) {
				t.Error(err)
			}
			if err := b.Store.UpdateStatus(t.Context(), Certificate("a")); !errors.Is(err, renewal.ErrNotFound) {
				t.Error(err)
			}
			if err := b.Store.DeleteSecret(t.Context(), "shop", "a"); err != nil {
				t.Error(err)
			}
			if refs, err := b.Store.List(t.Context()); len(refs) != 0 || err != nil {
				t.Error(refs, err)
			}
		}},
		{"what is declared is there, and is the caller's own", func(t *testing.T, b Backend) {
			b.Apply(Certificate("a"))
			c := get(t, b, key)
			if c.Metadata.Generation != 1 || c.Metadata.ResourceVersion == "" || c.Spec.DNSNames[0] != "a.example.org" || c.Key() != key {
				t.Errorf("%+v", c)
			}
			c.Spec.DNSNames[0] = "changed"
			if again := get(t, b, key); again.Spec.DNSNames[0] != "a.example.org" {
				t.Error("a caller changed what is stored")
			}
		}},
		{"a status is written by who read the latest", func(t *testing.T, b Backend) {
			b.Apply(Certificate("a"))
			first, second := get(t, b, key), get(t, b, key)
			n := 7
			first.Status.Revision = &n
			first.Spec.SecretName = "other"
			version := first.Metadata.ResourceVersion
			if err := b.Store.UpdateStatus(t.Context(), first); err != nil || first.Metadata.ResourceVersion == version {
				t.Fatal(err, first.Metadata.ResourceVersion)
			}
			if err := b.Store.UpdateStatus(t.Context(), second); !errors.Is(err, renewal.ErrConflict) {
				t.Errorf("who read an older one: %v", err)
			}
			if err := b.Store.UpdateStatus(t.Context(), first); err != nil {
				t.Errorf("who wrote the latest: %v", err)
			}
			if c := get(t, b, key); *c.Status.Revision != 7 || c.Spec.SecretName != "a-tls" || c.Metadata.Generation != 1 {
				t.Errorf("%+v", c)
			}
		}},
		{"a changed spec is another generation and keeps its status; a label is not", func(t *testing.T, b Backend) {
			b.Apply(Certificate("a"))
			c := get(t, b, key)
			n := 7
			c.Status.Revision = &n
			if err := b.Store.UpdateStatus(t.Context(), c); err != nil {
				t.Fatal(err)
			}
			next := Certificate("a")
			next.Spec.DNSNames = []string{"b.example.org"}
			b.Apply(next)
			until(t, "the new spec", func() bool { return get(t, b, key).Spec.DNSNames[0] == "b.example.org" })
			if c := get(t, b, key); c.Metadata.Generation != 2 || *c.Status.Revision != 7 {
				t.Errorf("%+v", c)
			}
			next.Metadata.Labels = map[string]string{"a": "b"}
			b.Apply(next)
			until(t, "the label", func() bool { return get(t, b, key).Metadata.Labels["a"] == "b" })
			if c := get(t, b, key); c.Metadata.Generation != 2 {
				t.Errorf("%+v", c)
			}
		}},
		{"a list has a version that changes with certificate and Secret", func(t *testing.T, b Backend) {
			b.Apply(Certificate("a"))
			b.Apply(Certificate("b"))
			seen := map[string]bool{}
			look := func() {
				refs, err := b.Store.List(t.Context())
				if err != nil || len(refs) != 2 {
					t.Fatal(refs, err)
				}
				for _, r := range refs {
					if r.Key == key {
						if seen[r.Version] {
							t.Errorf("version %s again", r.Version)
						}
						seen[r.Version] = true
					}
				}
			}
			look()
			c := get(t, b, key)
			n := 1
			c.Status.Revision = &n
			if err := b.Store.UpdateStatus(t.Context(), c); err != nil {
				t.Fatal(err)
			}
			look()
			put(t, b, &renewal.Secret{Namespace: "shop", Name: "a-tls", Data: map[string][]byte{"x": []byte("1")}})
			look()
			put(t, b, &renewal.Secret{Namespace: "shop", Name: "a-tls", Data: map[string][]byte{"x": []byte("2")}})
			look()
		}},
		{"a Secret is replaced as a whole", func(t *testing.T, b Backend) {
			put(t, b, &renewal.Secret{Namespace: "shop", Name: "s", Labels: map[string]string{"l": "1"}, Annotations: map[string]string{"a": "1"}, Data: map[string][]byte{renewal.TLSKey: []byte("k1"), renewal.CACert: []byte("c1")}})
			put(t, b, &renewal.Secret{Namespace: "shop", Name: "s", Annotations: map[string]string{"a": "2"}, Data: map[string][]byte{renewal.TLSKey: []byte("k2"), renewal.TLSCert: []byte("t2")}})
			s, err := b.Store.GetSecret(t.Context(), "shop", "s")
			if err != nil || len(s.Data) != 2 || string(s.Data[renewal.TLSKey]) != "k2" || string(s.Data[renewal.TLSCert]) != "t2" || s.Annotations["a"] != "2" || len(s.Labels) != 0 {
				t.Fatal(s, err)
			}
			s.Data[renewal.TLSKey][0] = 'x'
			if again, _ := b.Store.GetSecret(t.Context(), "shop", "s"); string(again.Data[renewal.TLSKey]) != "k2" {
				t.Error("a caller changed what is stored")
			}
			if err := b.Store.DeleteSecret(t.Context(), "shop", "s"); err != nil {
				t.Fatal(err)
			}
			if _, err := b.Store.GetSecret(t.Context(), "shop", "s"); !errors.Is(err, renewal.ErrNotFound) {
				t.Error(err)
			}
		}},
		{"a Secret is read whole while it is replaced, or not at all while it is deleted", func(t *testing.T, b Backend) {
			secret := func(n int) *renewal.Secret {
				v := []byte(strconv.Itoa(n))
				return &renewal.Secret{Namespace: "shop", Name: "s", Data: map[string][]byte{renewal.TLSKey: v, renewal.TLSCert: v, renewal.CACert: v}}
			}
			put(t, b, secret(0))
			stop := make(chan struct{})
			var wg sync.WaitGroup
			for range 2 {
				wg.Go(func() {
					for {
						select {
						case <-stop:
							return
						default:
						}
						s, err := b.Store.GetSecret(context.Background(), "shop", "s")
						if errors.Is(err, renewal.ErrNotFound) {
							continue
						}
						if err != nil || len(s.Data) != 3 || string(s.Data[renewal.TLSKey]) != string(s.Data[renewal.TLSCert]) || string(s.Data[renewal.TLSKey]) != string(s.Data[renewal.CACert]) {
							t.Errorf("%v, %v", s, err)
							return
						}
					}
				})
			}
			for n := range 40 {
				put(t, b, secret(n))
				if n%10 == 9 {
					if err := b.Store.DeleteSecret(t.Context(), "shop", "s"); err != nil {
						t.Error(err)
					}
				}
			}
			close(stop)
			wg.Wait()
		}},
		{"a watch tells of what there is, and of what appears, changes and goes", func(t *testing.T, b Backend) {
			b.Apply(Certificate("a"))
			ctx, cancel := context.WithCancel(t.Context())
			var mu sync.Mutex
			var told []renewal.Key
			var ended error
			var watching sync.WaitGroup
			watching.Go(func() {
				ended = b.Store.Watch(ctx, func(k renewal.Key) {
					mu.Lock()
					defer mu.Unlock()
					told = append(told, k)
				})
			})
			defer watching.Wait()
			defer cancel()
			expect := func(what, name string) {
				t.Helper()
				until(t, what, func() bool {
					mu.Lock()
					defer mu.Unlock()
					return slices.Contains(told, renewal.Key{Namespace: "shop", Name: name})
				})
				mu.Lock()
				told = nil
				mu.Unlock()
			}
			expect("what there is", "a")
			b.Apply(Certificate("b"))
			expect("what appears", "b")
			if err := renewal.Trigger(t.Context(), b.Store, key); err != nil {
				t.Fatal(err)
			}
			expect("a status", "a")
			next := Certificate("b")
			next.Spec.DNSNames = []string{"c.example.org"}
			b.Apply(next)
			expect("a spec", "b")
			b.Delete(key)
			expect("what goes", "a")
			until(t, "it is gone", func() bool { _, err := b.Store.Get(t.Context(), key); return errors.Is(err, renewal.ErrNotFound) })
			cancel()
			watching.Wait()
			if !errors.Is(ended, context.Canceled) {
				t.Error(ended)
			}
		}},
		{"of many writers of one status each gets through in turn", func(t *testing.T, b Backend) {
			b.Apply(Certificate("a"))
			var wg sync.WaitGroup
			for range 4 {
				wg.Go(func() {
					for done := 0; done < 5; {
						c, err := b.Store.Get(t.Context(), key)
						if err != nil {
							t.Error(err)
							return
						}
						n := 1
						if c.Status.Revision != nil {
							n = *c.Status.Revision + 1
						}
						c.Status.Revision = &n
						if err = b.Store.UpdateStatus(t.Context(), c); err == nil {
							done++
						} else if !errors.Is(err, renewal.ErrConflict) {
							t.Error(err)
							return
						}
					}
				})
			}
			wg.Wait()
			if c := get(t, b, key); *c.Status.Revision != 20 {
				t.Errorf("20 writes count %d", *c.Status.Revision)
			}
		}},
	} {
		t.Run(tt.name, func(t *testing.T) { tt.test(t, open(t)) })
	}
}

func get(t *testing.T, b Backend, k renewal.Key) *renewal.Certificate {
	t.Helper()
	c, err := b.Store.Get(t.Context(), k)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func put(t *testing.T, b Backend, s *renewal.Secret) {
	t.Helper()
	if err := b.Store.PutSecret(t.Context(), s); err != nil {
		t.Fatal(err)
	}
}

func until(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); !ok(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%s: not within %s", what, patience)
		}
	}
}
