package acmecert

import (
	"context"
	"errors"
	"testing"

	"github.com/caddyserver/certmagic"
)

// fullStorage takes nothing more.
type fullStorage struct{ Storage }

func (fullStorage) Store(context.Context, string, []byte) error {
	return errors.New("the disk is full")
}

// write does what certmagic does with a new certificate: the parts in this
// order, and those that were written taken back when one cannot be.
func write(ctx context.Context, s Storage, key, certificate string) error {
	at := []string{certmagic.StorageKeys.SitePrivateKey("ca", "a.test"), certmagic.StorageKeys.SiteCert("ca", "a.test"), certmagic.StorageKeys.SiteMeta("ca", "a.test")}
	for i, value := range []string{key, certificate, "{}"} {
		if err := s.Store(ctx, at[i], []byte(value)); err != nil {
			for i--; i >= 0; i-- {
				s.Delete(ctx, at[i])
			}
			return err
		}
	}
	return nil
}

func TestARenewalThatCannotBeStoredLeavesTheCertificateBefore(t *testing.T) {
	shared := &Memory{}
	if err := write(t.Context(), newPairs(shared), "key one", "certificate one"); err != nil {
		t.Fatal(err)
	}
	full := newPairs(fullStorage{shared})
	if err := write(t.Context(), full, "key two", "certificate two"); err == nil {
		t.Fatal("it was stored")
	}
	got, err := newPairs(shared).load(t.Context(), pairKey("ca", "a.test"))
	if err != nil || string(got.Key) != "key one" || string(got.Certificate) != "certificate one" {
		t.Errorf("%+v, %v", got, err)
	}
	if len(full.writing) != 0 {
		t.Error("the parts of what could not be stored are kept")
	}
}
