// Package objectstore lets the replicas of a service share one ACME account,
// its certificates and its challenges through Legation: an acmecert.Storage
// over the service legation.workload.v1.Objects of the agent's socket. It
// answers "where do replicas on different machines meet"; which certificates
// there are is acmecert's question.
//
// What is stored is sealed before it leaves the process, under a key that the
// replicas share and the control plane does not have, and bound to its name:
// the control plane can neither read a private key nor put one value in
// another's place. It can take values away, and put back older ones of the
// same name. Names (domains, the CA's address) are not hidden from it.
//
// Locks are taken by compare-and-set and renewed while they are held. A holder
// that was killed holds up the others for Config.LockTTL, judged by their own
// clocks: no two machines' clocks are compared.
package objectstore

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"strings"
	"sync"
	"time"

	"github.com/caddyserver/certmagic"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/legation-io/legation/sdk/acmecert"
	"github.com/legation-io/legation/sdk/acmecert/internal/keys"
	"github.com/legation-io/legation/sdk/acmecert/internal/sealing"
	workloadv1 "github.com/legation-io/legation/sdk/api/workload/v1"
	"github.com/legation-io/legation/sdk/workloadapi"
)

// Config says where the objects are and what seals them.
type Config struct {
	// Addr of the agent's socket, "unix:///path" or "tcp://ip:port"; empty
	// takes SPIFFE_ENDPOINT_SOCKET.
	Addr string
	// Conn is used instead of Addr, and not closed; workloadapi.Dial makes
	// one.
	Conn grpc.ClientConnInterface
	// SPIFFEID is whose objects are used; zero takes the process's default
	// identity. All replicas must have it.
	SPIFFEID spiffeid.ID
	// Prefix of all names, so that several services of one identity do not
	// meet; empty means "acmecert".
	Prefix string
	// Key seals every value: 32 bytes, the same in all replicas; or KeyFile
	// holds them, raw, hexadecimal or base64. One of the two is required.
	Key     []byte
	KeyFile string
	// OldKeys still open what was sealed before Key was changed.
	OldKeys [][]byte
	// LockTTL is how long a holder that does not renew keeps a lock; 0 means
	// 15 s, at least one second.
	LockTTL time.Duration
	// CallTimeout bounds each call; 0 means 10 s.
	CallTimeout time.Duration
	// Logger is slog.Default() when nil.
	Logger *slog.Logger
}

// Storage implements acmecert.Storage. It must be closed after the Managers
// that use it.
type Storage struct {
	config  Config
	objects workloadv1.ObjectsClient
	sealer  *sealing.Sealer
	own     *grpc.ClientConn // nil when Config.Conn is used
	log     *slog.Logger

	mu     sync.Mutex // guards what follows
	held   map[string]*lock
	closed bool
}

var _ acmecert.Storage = (*Storage)(nil)

// maxValue is what the Objects service takes.
const maxValue = 256 << 10

// New refuses a Config with everything that is wrong with it. It contacts
// nobody.
func New(c Config) (*Storage, error) {
	var problems []error
	if (c.Key == nil) == (c.KeyFile == "") {
		problems = append(problems, errors.New("one of Key and KeyFile is required: private keys never leave a machine unsealed"))
	}
	if c.KeyFile != "" && c.Key == nil {
		key, err := sealing.ReadKey(c.KeyFile)
		if err != nil {
			problems = append(problems, err)
		}
		c.Key = key
	}
	var sealer *sealing.Sealer
	if len(problems) == 0 {
		var err error
		if sealer, err = sealing.New(c.Key, c.OldKeys...); err != nil {
			problems = append(problems, err)
		}
	}
	if c.Prefix == "" {
		c.Prefix = "acmecert"
	}
	if err := keys.Valid(c.Prefix); err != nil {
		problems = append(problems, fmt.Errorf("the Prefix: %w", err))
	}
	if c.LockTTL == 0 {
		c.LockTTL = 15 * time.Second
	}
	if c.LockTTL < time.Second {
		problems = append(problems, fmt.Errorf("LockTTL: %s is less than a second", c.LockTTL))
	}
	if c.CallTimeout <= 0 {
		c.CallTimeout = 10 * time.Second
	}
	if c.Logger == nil {
		c.Logger = slog.Default()
	}
	if len(problems) > 0 {
		return nil, fmt.Errorf("objectstore: %w", errors.Join(problems...))
	}
	s := &Storage{config: c, sealer: sealer, log: c.Logger, held: map[string]*lock{}}
	conn := c.Conn
	if conn == nil {
		own, err := workloadapi.Dial(c.Addr)
		if err != nil {
			return nil, fmt.Errorf("objectstore: %w", err)
		}
		s.own, conn = own, own
	}
	s.objects = workloadv1.NewObjectsClient(conn)
	return s, nil
}

// Close gives back the locks that are held and ends what renewed them.
func (s *Storage) Close() error {
	s.mu.Lock()
	s.closed = true
	names := make([]string, 0, len(s.held))
	for name := range s.held {
		names = append(names, name)
	}
	s.mu.Unlock()
	var problems []error
	for _, name := range names {
		if err := s.Unlock(context.Background(), name); err != nil {
			problems = append(problems, err)
		}
	}
	if s.own != nil {
		problems = append(problems, s.own.Close())
	}
	return errors.Join(problems...)
}

func (s *Storage) name(key string) (string, error) {
	name := s.config.Prefix + "/" + strings.Trim(key, "/")
	return name, keys.Valid(name)
}

func (s *Storage) call(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(ctx, s.config.CallTimeout)
}

// explain wraps an answer of the agent; nothing there is fs.ErrNotExist.
func explain(what, key string, err error) error {
	switch status.Code(err) {
	case codes.OK:
		return nil
	case codes.NotFound:
		return &fs.PathError{Op: what, Path: key, Err: fs.ErrNotExist}
	case codes.Unimplemented:
		return fmt.Errorf("%s %s: what answers at the Workload API's socket keeps no objects: it must be Legation's agent: %w", what, key, err)
	}
	return fmt.Errorf("%s %s: %w", what, key, err)
}

// Store implements acmecert.Storage.
func (s *Storage) Store(ctx context.Context, key string, value []byte) error {
	name, err := s.name(key)
	if err != nil {
		return err
	}
	_, err = s.put(ctx, name, value, nil)
	return explain("store", key, err)
}

func (s *Storage) put(ctx context.Context, name string, value []byte, ifRevision *int64) (int64, error) {
	sealed, err := s.sealer.Seal(name, value)
	if err != nil {
		return 0, err
	}
	if len(sealed) > maxValue {
		return 0, fmt.Errorf("%d bytes are more than the %d that are kept", len(value), maxValue-sealing.Overhead)
	}
	ctx, cancel := s.call(ctx)
	defer cancel()
	res, err := s.objects.Put(ctx, &workloadv1.PutObjectRequest{SpiffeId: s.config.SPIFFEID.String(), Key: name, Value: sealed, IfRevision: ifRevision})
	return res.GetRevision(), err
}

// Load implements acmecert.Storage.
func (s *Storage) Load(ctx context.Context, key string) ([]byte, error) {
	name, err := s.name(key)
	if err != nil {
		return nil, err
	}
	value, _, err := s.get(ctx, name)
	return value, explain("load", key, err)
}

func (s *Storage) get(ctx context.Context, name string) ([]byte, int64, error) {
	ctx, cancel := s.call(ctx)
	defer cancel()
	res, err := s.objects.Get(ctx, &workloadv1.GetObjectRequest{SpiffeId: s.config.SPIFFEID.String(), Key: name})
	if err != nil {
		return nil, 0, err
	}
	value, err := s.sealer.Open(name, res.GetValue())
	return value, res.GetRevision(), err
}

// Delete implements acmecert.Storage: key, and everything below it.
func (s *Storage) Delete(ctx context.Context, key string) error {
	name, err := s.name(key)
	if err != nil {
		return err
	}
	below, err := s.list(ctx, name+"/")
	if err != nil {
		return explain("delete", key, err)
	}
	for _, o := range append(below, &workloadv1.Object{Key: name}) {
		if err := s.remove(ctx, o.GetKey(), nil); err != nil && status.Code(err) != codes.NotFound {
			return explain("delete", key, err)
		}
	}
	return nil
}

func (s *Storage) remove(ctx context.Context, name string, ifRevision *int64) error {
	ctx, cancel := s.call(ctx)
	defer cancel()
	_, err := s.objects.Delete(ctx, &workloadv1.DeleteObjectRequest{SpiffeId: s.config.SPIFFEID.String(), Key: name, IfRevision: ifRevision})
	return err
}

func (s *Storage) list(ctx context.Context, prefix string) ([]*workloadv1.Object, error) {
	ctx, cancel := s.call(ctx)
	defer cancel()
	res, err := s.objects.List(ctx, &workloadv1.ListObjectsRequest{SpiffeId: s.config.SPIFFEID.String(), Prefix: prefix})
	return res.GetObjects(), err
}

// Exists implements acmecert.Storage. When that cannot be told it says yes,
// so that nothing is ordered in place of what may be there.
func (s *Storage) Exists(ctx context.Context, key string) bool {
	_, err := s.Stat(ctx, key)
	return !errors.Is(err, fs.ErrNotExist)
}

// Stat implements acmecert.Storage. Size is that of the sealed value.
func (s *Storage) Stat(ctx context.Context, key string) (certmagic.KeyInfo, error) {
	name, err := s.name(key)
	if err != nil {
		return certmagic.KeyInfo{}, err
	}
	found, err := s.list(ctx, name)
	if err != nil {
		return certmagic.KeyInfo{}, explain("stat", key, err)
	}
	folder := false
	for _, o := range found {
		if o.GetKey() == name {
			return certmagic.KeyInfo{Key: key, Modified: time.Unix(0, o.GetModifiedUnixNano()), Size: int64(o.GetSize()), IsTerminal: true}, nil
		}
		folder = folder || strings.HasPrefix(o.GetKey(), name+"/")
	}
	if folder {
		return certmagic.KeyInfo{Key: key}, nil
	}
	return certmagic.KeyInfo{}, &fs.PathError{Op: "stat", Path: key, Err: fs.ErrNotExist}
}

// List implements acmecert.Storage.
func (s *Storage) List(ctx context.Context, path string, recursive bool) ([]string, error) {
	root := s.config.Prefix + "/"
	prefix := root
	if trimmed := strings.Trim(path, "/"); trimmed != "" {
		prefix += trimmed + "/"
	}
	found, err := s.list(ctx, prefix)
	if err != nil {
		return nil, explain("list", path, err)
	}
	all := make([]string, 0, len(found))
	for _, o := range found {
		all = append(all, strings.TrimPrefix(o.GetKey(), root))
	}
	return keys.Under(all, path, recursive)
}
