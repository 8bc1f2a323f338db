package acmecert

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"strings"

	"github.com/caddyserver/certmagic"
	"github.com/mholt/acmez/v3"
	"github.com/mholt/acmez/v3/acme"
)

// storedAccount is one value, so that key and location never differ. It is
// stored without a location before the CA is told of the key, so that whoever
// is killed in between registers no second account: an external account may be
// bound only once.
type storedAccount struct {
	Account acme.Account `json:"account"`
	Key     []byte       `json:"key"` // PEM
}

// accountKey names the account by everything that makes it another one.
func (i *issuer) accountKey() string {
	identity := i.config.Email
	if i.config.EAB != nil {
		identity += "\x00" + i.config.EAB.KeyID
	}
	sum := sha256.Sum256([]byte(identity))
	return "acme/" + certmagic.StorageKeys.Safe(i.IssuerKey()) + "/account-" + hex.EncodeToString(sum[:8]) + ".json"
}

// registered returns the account of this Manager and its replicas, registered
// with the CA if it is new (RFC 8555 7.3).
func (i *issuer) registered(ctx context.Context, client *acmez.Client, dir acme.Directory) (acme.Account, error) {
	if account, err := i.stored(ctx); !unregistered(account, err) {
		return account, err
	}
	done, err := i.turn(ctx)
	if err != nil {
		return acme.Account{}, err
	}
	defer done()
	account, err := i.stored(ctx)
	if !unregistered(account, err) {
		return account, err // another was quicker
	}
	return i.register(ctx, client, dir, account.PrivateKey)
}

func unregistered(stored acme.Account, err error) bool {
	return errors.Is(err, fs.ErrNotExist) || err == nil && stored.Location == ""
}

// turn takes turns at the account, with the replicas and within this Manager.
func (i *issuer) turn(ctx context.Context) (done func(), err error) {
	lock := "register_" + strings.ReplaceAll(i.accountKey(), "/", "_")
	if err := i.config.Storage.Lock(ctx, lock); err != nil {
		return nil, fmt.Errorf("take turns at the ACME account: %w", err)
	}
	return func() { unlock(ctx, i.config.Storage, lock, i.log) }, nil
}

// register tells the CA of the key that was stored, or of a new one.
func (i *issuer) register(ctx context.Context, client *acmez.Client, dir acme.Directory, stored crypto.Signer) (acme.Account, error) {
	if dir.Meta != nil && dir.Meta.TermsOfService != "" && !i.config.TermsAgreed {
		return acme.Account{}, fmt.Errorf("the CA has terms of service at %s: read them and set TermsAgreed", clean(dir.Meta.TermsOfService))
	}
	if dir.Meta != nil && dir.Meta.ExternalAccountRequired && i.config.EAB == nil {
		return acme.Account{}, errors.New("the CA wants an external account binding (RFC 8555 7.3.4): set EAB to what it gave you")
	}
	key, ok := stored.(*ecdsa.PrivateKey)
	if !ok {
		var err error
		if key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); err != nil {
			return acme.Account{}, err
		}
		if err := i.store(ctx, acme.Account{}, key); err != nil {
			return acme.Account{}, err
		}
	}
	account := acme.Account{PrivateKey: key, TermsOfServiceAgreed: i.config.TermsAgreed}
	if i.config.Email != "" {
		account.Contact = []string{"mailto:" + i.config.Email}
	}
	if i.config.EAB != nil {
		eab := acme.EAB{KeyID: i.config.EAB.KeyID, MACKey: strings.TrimRight(i.config.EAB.HMAC, "=")}
		if err := account.SetExternalAccountBinding(ctx, client.Client, eab); err != nil {
			return acme.Account{}, fmt.Errorf("bind the external account: %w", err)
		}
	}
	i.transport.sign(key)
	account, err := client.NewAccount(ctx, account)
	if err != nil {
		return acme.Account{}, fmt.Errorf("register an ACME account: %w", err)
	}
	account.PrivateKey, account.ExternalAccountBinding = key, nil
	if account.Status != acme.StatusValid || httpsURL(account.Location) != nil {
		return acme.Account{}, fmt.Errorf("register an ACME account: the CA answered status %q at %q", clean(account.Status), clean(account.Location))
	}
	if err := i.store(ctx, account, key); err != nil {
		return acme.Account{}, err
	}
	i.log.Info("an ACME account is registered", "directory", i.config.Directory, "account", clean(account.Location))
	return account, nil
}

func (i *issuer) store(ctx context.Context, account acme.Account, key *ecdsa.PrivateKey) error {
	text, err := certmagic.PEMEncodePrivateKey(key)
	if err != nil {
		return err
	}
	value, err := json.Marshal(storedAccount{account, text})
	if err != nil {
		return err
	}
	if err := i.config.Storage.Store(ctx, i.accountKey(), value); err != nil {
		return fmt.Errorf("store the ACME account: %w", err)
	}
	return nil
}

// stored returns the account, without a location when the CA may not have been
// told of it; fs.ErrNotExist without one.
func (i *issuer) stored(ctx context.Context) (acme.Account, error) {
	value, err := i.config.Storage.Load(ctx, i.accountKey())
	if err != nil {
		return acme.Account{}, fmt.Errorf("load the ACME account: %w", err)
	}
	var s storedAccount
	if err := json.Unmarshal(value, &s); err != nil {
		return acme.Account{}, fmt.Errorf("the stored ACME account %s cannot be read: %w", i.accountKey(), err)
	}
	key, err := certmagic.PEMDecodePrivateKey(s.Key)
	if err != nil {
		return acme.Account{}, fmt.Errorf("the stored ACME account %s has no usable key: %w", i.accountKey(), err)
	}
	signer, ok := key.(*ecdsa.PrivateKey)
	if !ok || signer.Curve != elliptic.P256() {
		return acme.Account{}, fmt.Errorf("the stored ACME account %s has another key than P-256", i.accountKey())
	}
	s.Account.PrivateKey = signer
	i.transport.sign(signer)
	return s.Account, nil
}

// forget removes an account that the CA does not know, unless another replica
// has put a new one there.
func (i *issuer) forget(ctx context.Context, gone acme.Account) error {
	done, err := i.turn(ctx)
	if err != nil {
		return err
	}
	defer done()
	current, err := i.stored(ctx)
	if errors.Is(err, fs.ErrNotExist) || err == nil && current.Location != gone.Location {
		return nil
	}
	if err != nil {
		return err
	}
	return i.config.Storage.Delete(ctx, i.accountKey())
}
