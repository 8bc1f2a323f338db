package policy

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"time"

	"github.com/legation-io/legation/sdk/internal/durable"
)

// BundleFile is a policy in a signed OPA bundle that somebody puts into a
// file, e.g. with "opa build --revision 17 --signing-key …". It goes forward
// only: a bundle with a lower revision than the highest ever in force, or the
// same with other content, is refused, also after a restart.
type BundleFile struct {
	// Path of the tar.gz.
	Path string
	// Keys verify it; at least one.
	Keys []Key
	// Scope must be the signature's; default "".
	Scope string
	// State is a file, in a folder that only this program writes, that keeps
	// the highest revision that was in force. Required: without it a restart
	// could be rolled back.
	State string
	// Name of the policy; default is Path's last element.
	Name string
	// Query that decides; empty is DefaultQuery.
	Query string
	// Poll is how often the file is read even though no change was seen;
	// default 10 s.
	Poll time.Duration
}

// Check reports what is wrong with the settings.
func (b BundleFile) Check() error {
	if b.Path == "" || b.State == "" || len(b.Keys) == 0 {
		return errors.New("BundleFile needs Path, State and at least one of Keys")
	}
	for _, k := range b.Keys {
		if err := k.check(); err != nil {
			return err
		}
	}
	_, err := readHighest(b.State)
	return err
}

// Load reads and verifies the file and puts it into force. It is what Run does
// at each change.
func (b BundleFile) Load(ctx context.Context, e *Engine) error {
	raw, err := durable.Read(b.Path, MaxBundleBytes)
	if err != nil {
		return e.refused("bundle", Policy{Name: b.name()}, err)
	}
	return b.load(ctx, e, raw)
}

func (b BundleFile) name() string { return cmp.Or(b.Name, filepath.Base(b.Path)) }

func (b BundleFile) load(ctx context.Context, e *Engine, raw []byte) error {
	refuse := func(err error) error {
		return e.refused("bundle", Policy{Name: b.name()}, fmt.Errorf("%s: %w", b.Path, err))
	}
	if err := b.Check(); err != nil {
		return refuse(err)
	}
	bundle, err := ReadBundle(raw, b.Keys, b.Scope)
	if err != nil {
		return refuse(err)
	}
	bundle.Name, bundle.Query = b.name(), b.Query
	now := highest{bundle.Revision, hex.EncodeToString(sum(raw))}
	follows := func() (before highest, err error) {
		if before, err = readHighest(b.State); err == nil {
			err = before.follows(now)
		}
		return before, err
	}
	if _, err := follows(); err != nil {
		return refuse(err)
	}
	return e.set(ctx, "bundle", func() error { // before it decides anything
		before, err := follows() // another may have come into force meanwhile
		if err != nil || now == before {
			return err
		}
		return writeHighest(b.State, now)
	}, []Policy{bundle.Policy})
}

// Run puts the bundle into force and follows the file until ctx ends, and
// returns nil then; it fails at once with the error of Check. What does not
// load is logged and counted, and leaves the bundle before in force; where
// State cannot be read or written, the same bundle is tried again every Poll.
func (b BundleFile) Run(ctx context.Context, e *Engine) error {
	if err := b.Check(); err != nil {
		return err
	}
	durable.Tidy(filepath.Dir(b.State))
	tried, failed := "", ""
	var again time.Time // when the same bundle is tried again; zero is never
	follow(ctx, e.config.Logger, b.Poll, func() []string { return []string{filepath.Dir(b.Path)} }, func() {
		raw, err := durable.Read(b.Path, MaxBundleBytes)
		if err != nil {
			if failed != err.Error() {
				failed = err.Error()
				e.refused("bundle", Policy{Name: b.name()}, err)
			}
			return
		}
		if now := string(sum(raw)); now != tried || failed != "" || !again.IsZero() && time.Now().After(again) {
			tried, failed, again = now, "", time.Time{}
			if err := b.load(ctx, e, raw); errors.As(err, new(*stateError)) { // load says itself what is wrong
				// By a tick: trying to write may itself be a change that is seen.
				again = time.Now().Add(cmp.Or(max(b.Poll, 0), defaultPoll) / 2)
			}
		}
	})
	return nil
}

func sum(raw []byte) []byte {
	s := sha256.Sum256(raw)
	return s[:]
}

// stateError is an error of the state file, not of the bundle, which is tried
// again.
type stateError struct{ error }

// Unwrap returns what happened to the file.
func (e *stateError) Unwrap() error { return e.error }

// highest is the content of the state file.
type highest struct {
	Revision uint64 `json:"revision"`
	SHA256   string `json:"sha256"`
}

func (h highest) follows(next highest) error {
	switch {
	case next.Revision < h.Revision:
		return fmt.Errorf("revision %d is older than %d, which was in force already", next.Revision, h.Revision)
	case next.Revision == h.Revision && next.SHA256 != h.SHA256:
		return fmt.Errorf("revision %d was in force already with other content: give it a higher one", next.Revision)
	}
	return nil
}

func readHighest(file string) (highest, error) {
	raw, err := durable.Read(file, 4096)
	if errors.Is(err, fs.ErrNotExist) {
		return highest{}, nil
	}
	var h highest
	if err == nil {
		err = json.Unmarshal(raw, &h)
	}
	if err == nil && (h.Revision == 0 || len(h.SHA256) != 64) {
		err = errors.New("it holds no revision")
	}
	if err != nil {
		return highest{}, &stateError{fmt.Errorf("the highest revision that was in force is not known: %s: %w; remove the file to accept any", file, err)}
	}
	return h, nil
}

// writeHighest survives a crash at any instant: old or new.
func writeHighest(file string, h highest) (err error) {
	defer func() {
		if err != nil {
			err = &stateError{fmt.Errorf("keep the highest revision: %w", err)}
		}
	}()
	raw, err := json.Marshal(h)
	if err != nil {
		return err
	}
	return durable.Replace(file, append(raw, '\n'))
}
