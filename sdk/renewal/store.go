package renewal

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"time"
)

// The errors of a Store that its users act on.
var (
	ErrNotFound = errors.New("not found")
	// ErrConflict: somebody else wrote in between; read again.
	ErrConflict = errors.New("changed by somebody else in between")
)

// A Store keeps certificates and their Secrets. One Scheduler works on it at a
// time. Memory is one; sdk/renewal/folder keeps a folder of YAML files; a
// Kubernetes API server is another. Methods are called from several
// goroutines, and what they return is the caller's own.
type Store interface {
	// List returns what there is, in any order.
	List(ctx context.Context) ([]Ref, error)
	// Get returns a certificate with Metadata.ResourceVersion and Generation
	// set, or ErrNotFound.
	Get(ctx context.Context, k Key) (*Certificate, error)
	// UpdateStatus stores c.Status and sets c's ResourceVersion. It returns
	// ErrConflict when c's ResourceVersion is not the current one any more and
	// ErrNotFound when the certificate is gone.
	UpdateStatus(ctx context.Context, c *Certificate) error
	// Watch calls changed for every certificate there is and then for each
	// that appears, changes (spec, status or metadata) or disappears, until ctx
	// ends or the watch breaks. Changes may be reported together.
	Watch(ctx context.Context, changed func(Key)) error

	// GetSecret returns a Secret or ErrNotFound.
	GetSecret(ctx context.Context, namespace, name string) (*Secret, error)
	// PutSecret stores a Secret, durably and as a whole.
	PutSecret(ctx context.Context, s *Secret) error
	// DeleteSecret removes one; that there is none is no error.
	DeleteSecret(ctx context.Context, namespace, name string) error
}

// Ref is a certificate in a list.
type Ref struct {
	Key Key
	// Version changes with the certificate or the Secret that it names.
	Version string
}

// A Locker is a Store that knows whether another Scheduler works on it. Run
// takes the lock first.
type Locker interface {
	// Lock fails when somebody else has it.
	Lock() (io.Closer, error)
}

// The entries of a Secret, as in Kubernetes' kubernetes.io/tls.
const (
	TLSKey  = "tls.key" // PEM
	TLSCert = "tls.crt" // PEM, leaf first
	CACert  = "ca.crt"  // PEM
	csrData = "tls.csr" // PEM; in the Secret of the next key
)

// Secret holds key and certificate. It is never printed with its values.
type Secret struct {
	Namespace   string
	Name        string
	Labels      map[string]string
	Annotations map[string]string
	Data        map[string][]byte
}

// TLS returns key and chain for crypto/tls, Leaf set.
func (s *Secret) TLS() (*tls.Certificate, error) {
	c, err := tls.X509KeyPair(s.Data[TLSCert], s.Data[TLSKey])
	if err != nil {
		return nil, fmt.Errorf("secret %s/%s: %w", s.Namespace, s.Name, err)
	}
	return &c, nil
}

// Clone returns a copy that shares nothing.
func (s *Secret) Clone() *Secret {
	out := &Secret{Namespace: s.Namespace, Name: s.Name, Labels: maps.Clone(s.Labels), Annotations: maps.Clone(s.Annotations)}
	out.Data = make(map[string][]byte, len(s.Data))
	for k, v := range s.Data {
		out.Data[k] = bytes.Clone(v)
	}
	return out
}

// Format implements fmt.Formatter: values are left out.
func (s Secret) Format(f fmt.State, _ rune) {
	fmt.Fprintf(f, "secret %s/%s (%d values)", s.Namespace, s.Name, len(s.Data))
}

// LogValue implements slog.LogValuer: values are left out.
func (s Secret) LogValue() slog.Value { return slog.StringValue(fmt.Sprint(s)) }

// Trigger asks for a certificate's renewal now, like cmctl renew: it sets the
// condition Issuing. The Scheduler that works on the store, in this process or
// another, does it whatever the backoff.
func Trigger(ctx context.Context, s Store, k Key) error { return trigger(ctx, s, k, time.Now()) }

func trigger(ctx context.Context, s Store, k Key, now time.Time) error {
	return updateStatus(ctx, s, k, func(c *Certificate) {
		c.Status.SetCondition(now, c.Metadata.Generation, Issuing, True, ReasonManuallyTriggered, "Certificate re-issuance manually triggered")
	})
}

// updateStatus reads, changes and writes until nobody comes in between.
func updateStatus(ctx context.Context, s Store, k Key, change func(*Certificate)) error {
	for range 10 {
		c, err := s.Get(ctx, k)
		if err != nil {
			return fmt.Errorf("certificate %s: %w", k, err)
		}
		change(c)
		if err = s.UpdateStatus(ctx, c); err == nil {
			return nil
		} else if !errors.Is(err, ErrConflict) {
			return fmt.Errorf("write the status of %s: %w", k, err)
		}
	}
	return fmt.Errorf("write the status of %s: %w, ten times", k, ErrConflict)
}
