package objects

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"

	"github.com/legation-io/legation/internal/fault"
	"github.com/legation-io/legation/internal/store"
	"github.com/legation-io/legation/internal/store/memory"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

var td = spiffeid.RequireTrustDomainFromString("example.org")

func id(path string) spiffeid.ID { return spiffeid.RequireFromPath(td, path) }

func at(r int64) *int64 { return &r }

func fixture(t *testing.T) (*Objects, *memory.Store) {
	t.Helper()
	s := memory.New()
	t.Cleanup(func() { s.Close() })
	return New(Params{Store: s, TrustDomain: td}), s
}

func TestKeysAre(t *testing.T) {
	for _, row := range []struct {
		name, key string
		fine      bool
	}{
		{"segments of letters, digits and ._@*+-", "acme/a-Z_0.9/*@+", true},
		{"not empty", "", false},
		{"at most 512 bytes", strings.Repeat("a", 513), false},
		{"512 bytes still", strings.Repeat("a", 512), true},
		{"never leading upwards", "a/../b", false},
		{"never a dot alone", "./b", false},
		{"never with an empty segment", "a//b", false},
		{"never absolute", "/a", false},
		{"never a folder", "a/", false},
		{"never of another alphabet", "a\x00b", false},
		{"never with what separates identities", "a:b", false},
		{"never in another script", "ä", false},
	} {
		t.Run(row.name, func(t *testing.T) {
			if err := CheckKey(row.key); (err == nil) != row.fine || err != nil && !fault.Is(err, fault.Invalid) {
				t.Errorf("%q: %v", row.key, err)
			}
		})
	}
}

func TestAnObject(t *testing.T) {
	o, _ := fixture(t)
	ctx, web := t.Context(), id("/ns/shop/sa/web")
	t.Run("that nobody stored is not found", func(t *testing.T) {
		if _, err := o.Get(ctx, web, "k"); !fault.Is(err, fault.NotFound) {
			t.Error(err)
		}
		if err := o.Delete(ctx, web, "k", nil); !fault.Is(err, fault.NotFound) {
			t.Error(err)
		}
	})
	first, err := o.Put(ctx, web, "k", []byte("one"), at(0))
	if err != nil {
		t.Fatal(err)
	}
	t.Run("is made by one alone", func(t *testing.T) {
		if _, err := o.Put(ctx, web, "k", []byte("other"), at(0)); !fault.Is(err, fault.Conflict) {
			t.Error(err)
		}
	})
	t.Run("has the revision that Put returned", func(t *testing.T) {
		got, err := o.Get(ctx, web, "k")
		if err != nil || string(got.Value) != "one" || got.Revision != first || got.Modified.IsZero() {
			t.Errorf("%+v, %v", got, err)
		}
	})
	second, err := o.Put(ctx, web, "k", []byte("two"), at(first))
	if err != nil || second <= first {
		t.Fatal(second, err)
	}
	t.Run("is not changed or deleted by who knows an old revision", func(t *testing.T) {
		if _, err := o.Put(ctx, web, "k", nil, at(first)); !fault.Is(err, fault.Conflict) {
			t.Error(err)
		}
		if err := o.Delete(ctx, web, "k", at(first)); !fault.Is(err, fault.Conflict) {
			t.Error(err)
		}
	})
	t.Run("is not another identity's", func(t *testing.T) {
		for _, other := range []spiffeid.ID{id("/ns/shop/sa"), id("/ns/shop/sa/web/k"), id("/ns/shop/sa/web2")} {
			if _, err := o.Get(ctx, other, "k"); !fault.Is(err, fault.NotFound) {
				t.Error(other, err)
			}
			if _, err := o.Get(ctx, other, "web/k"); !fault.Is(err, fault.NotFound) {
				t.Error(other, err)
			}
			if list, err := o.List(ctx, other, ""); err != nil || len(list) != 0 {
				t.Error(other, list, err)
			}
		}
		if _, err := o.Get(ctx, spiffeid.RequireFromString("spiffe://elsewhere/ns/shop/sa/web"), "k"); !fault.Is(err, fault.Denied) {
			t.Error(err)
		}
	})
	t.Run("is listed in key order, without its value", func(t *testing.T) {
		for _, k := range []string{"b/2", "b/1", "a"} {
			if _, err := o.Put(ctx, web, k, []byte(k), nil); err != nil {
				t.Fatal(err)
			}
		}
		list, err := o.List(ctx, web, "b/")
		if err != nil || len(list) != 2 || list[0].Key != "b/1" || list[1].Key != "b/2" || list[0].Value != nil || list[0].Size != 3 {
			t.Errorf("%+v, %v", list, err)
		}
		if _, err := o.List(ctx, web, "../"); !fault.Is(err, fault.Invalid) {
			t.Error(err)
		}
	})
	if err := o.Delete(ctx, web, "k", at(second)); err != nil {
		t.Error(err)
	}
}

func TestAQuota(t *testing.T) {
	web := id("/w")
	t.Run("of 256 KiB for one value", func(t *testing.T) {
		o, _ := fixture(t)
		if _, err := o.Put(t.Context(), web, "k", make([]byte, MaxValue+1), nil); !fault.Is(err, fault.Invalid) {
			t.Error(err)
		}
	})
	t.Run("of 16 MiB for all, given back by shrinking and deleting", func(t *testing.T) {
		o, _ := fixture(t)
		big := make([]byte, MaxValue)
		for i := range MaxTotal / MaxValue {
			if _, err := o.Put(t.Context(), web, fmt.Sprint(i), big, nil); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := o.Put(t.Context(), web, "more", []byte{1}, nil); !fault.Is(err, fault.Limited) {
			t.Error(err)
		}
		if _, err := o.Put(t.Context(), web, "0", big, nil); err != nil {
			t.Error("what stays as large is refused:", err)
		}
		if _, err := o.Put(t.Context(), web, "0", nil, nil); err != nil {
			t.Fatal(err)
		}
		if _, err := o.Put(t.Context(), web, "more", big, nil); err != nil {
			t.Error(err)
		}
		if _, err := o.Put(t.Context(), id("/x"), "k", big, nil); err != nil {
			t.Error("another identity's quota was taken:", err)
		}
	})
	t.Run("of 1,000 objects, never passed by those who race", func(t *testing.T) {
		o, s := fixture(t)
		for i := range MaxObjects - 5 {
			if _, err := o.Put(t.Context(), web, fmt.Sprint(i), []byte("v"), nil); err != nil {
				t.Fatal(err)
			}
		}
		var racing sync.WaitGroup
		var mu sync.Mutex
		won, limited := 0, 0
		for i := range 40 {
			racing.Go(func() {
				for {
					_, err := o.Put(t.Context(), web, fmt.Sprint("race", i), bytes.Repeat([]byte("v"), i), nil)
					if fault.Is(err, fault.Unavailable) {
						continue
					}
					mu.Lock()
					defer mu.Unlock()
					switch {
					case err == nil:
						won++
					case fault.Is(err, fault.Limited):
						limited++
					default:
						t.Error(err)
					}
					return
				}
			})
		}
		racing.Wait()
		if won != 5 || limited != 35 {
			t.Errorf("%d stored and %d refused, want 5 and 35", won, limited)
		}
		counted(t, o, s, web)
	})
}

// counted compares what is counted with what is there.
func counted(t *testing.T, o *Objects, s store.Store, who spiffeid.ID) {
	t.Helper()
	u, err := o.usage(t.Context(), who)
	if err != nil {
		t.Fatal(err)
	}
	list, err := o.List(t.Context(), who, "")
	if err != nil {
		t.Fatal(err)
	}
	size := 0
	for _, object := range list {
		size += object.Size
	}
	if int(u.objects) != len(list) || int(u.bytes) != size {
		t.Errorf("counted %d objects of %d bytes; there are %d of %d", u.objects, u.bytes, len(list), size)
	}
}

func TestWhatIsCountedStaysTrueUnderRaces(t *testing.T) {
	o, s := fixture(t)
	web := id("/w")
	var racing sync.WaitGroup
	for g := range 8 {
		racing.Go(func() {
			for i := range 60 {
				key := fmt.Sprint((g + i) % 5)
				var err error
				if i%3 == 2 {
					err = o.Delete(t.Context(), web, key, nil)
				} else {
					_, err = o.Put(t.Context(), web, key, make([]byte, (g*i)%17), nil)
				}
				if err != nil && !fault.Is(err, fault.NotFound) && !fault.Is(err, fault.Unavailable) {
					t.Error(err)
				}
			}
		})
	}
	racing.Wait()
	counted(t, o, s, web)
	list, _ := o.List(t.Context(), web, "")
	for _, object := range list {
		if err := o.Delete(t.Context(), web, object.Key, nil); err != nil {
			t.Error(err)
		}
	}
	if _, err := s.Get(t.Context(), o.usageKey(web)); !fault.Is(err, fault.NotFound) {
		t.Error("an identity without objects still has a count:", err)
	}
}

func TestOneOfManyWinsACompareAndSet(t *testing.T) {
	o, _ := fixture(t)
	web := id("/w")
	base, err := o.Put(t.Context(), web, "lock", []byte("0"), nil)
	if err != nil {
		t.Fatal(err)
	}
	var racing sync.WaitGroup
	var mu sync.Mutex
	won := 0
	for range 30 {
		racing.Go(func() {
			_, err := o.Put(t.Context(), web, "lock", []byte("x"), at(base))
			mu.Lock()
			defer mu.Unlock()
			if err == nil {
				won++
			} else if !fault.Is(err, fault.Conflict) {
				t.Error(err)
			}
		})
	}
	racing.Wait()
	if won != 1 {
		t.Errorf("%d won", won)
	}
}

func TestAFailingStoreIsNotACountedObject(t *testing.T) {
	o, s := fixture(t)
	full := fault.New(fault.Limited, "the store is full")
	s.FailCommits(func(store.Txn) error { return full })
	if _, err := o.Put(t.Context(), id("/w"), "k", []byte("v"), nil); !errors.Is(err, full) && !fault.Is(err, fault.Limited) {
		t.Error(err)
	}
	s.FailCommits(nil)
	counted(t, o, s, id("/w"))
}
