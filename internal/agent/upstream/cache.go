package upstream

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	nodev1 "github.com/legation-io/legation/api/node/v1"
	"github.com/legation-io/legation/internal/fault"
	"golang.org/x/sync/errgroup"
	"google.golang.org/protobuf/encoding/protodelim"
)

const (
	viewName = "view"
	// A storm is one write: a change waits for saveShare times what the last
	// write took, so that writing takes a twentieth of the time at most, at
	// least for saveSoon and at most for saveDelay.
	saveShare = 20
	saveDelay = 500 * time.Millisecond
	saveSoon  = 20 * time.Millisecond
	saveAgain = 10 * time.Second // after a failure
)

// encodeView is what the cache keeps of the view: a hello that says for which
// trust domain, then every resource, in the order in which it can be applied.
func (l *Link) encodeView() ([]byte, error) {
	l.mu.Lock()
	resources := l.trust.sorted()
	l.mu.Unlock()
	var out bytes.Buffer
	if _, err := protodelim.MarshalTo(&out, l.hello()); err != nil {
		return nil, err
	}
	for _, r := range resources {
		if _, err := protodelim.MarshalTo(&out, r); err != nil {
			return nil, err
		}
	}
	return out.Bytes(), nil
}

// decodeView applies cached bytes with the checks that the stream has. What
// does not pass is left out and named; the control plane sends it again.
func (l *Link) decodeView(raw []byte) error {
	in := bufio.NewReader(bytes.NewReader(raw))
	options := protodelim.UnmarshalOptions{MaxSize: maxMessage}
	var hello nodev1.Hello
	if err := options.UnmarshalFrom(in, &hello); err != nil {
		return fmt.Errorf("it does not parse: %w", err)
	}
	if err := l.checkHello(&hello); err != nil {
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	b := l.begin()
	var refused error
	for {
		r := new(nodev1.TrustResource)
		err := options.UnmarshalFrom(in, r)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return fmt.Errorf("it does not parse: %w", err)
		}
		if err := b.apply(r); err != nil {
			refused = errors.Join(refused, err)
		}
	}
	b.view.Synced = b.changed
	l.publish(b)
	return refused
}

// load reads what an earlier run kept.
func (l *Link) load() {
	if l.p.Cache == nil {
		return
	}
	for _, f := range l.files() {
		raw, err := l.p.Cache.Read(f.name)
		if fault.Is(err, fault.NotFound) {
			continue
		}
		if err == nil {
			err = f.decode(raw)
		}
		if err != nil {
			l.p.Log.Warn("what this agent cached of the control plane is not used in full", "file", f.name, "reason", err)
		}
	}
}

// file is one thing that survives restarts, beside the identity.
type file struct {
	name   string
	unsave chan struct{}
	encode func() ([]byte, error)
	decode func([]byte) error
}

func (l *Link) files() []file {
	return []file{
		{viewName, l.unsave, l.encodeView, l.decodeView},
		{configName, l.unsaveConfig, l.encodeConfig, l.decodeConfig},
	}
}

// save writes to the cache soon after something changes, or later if that
// fails.
func (l *Link) save(ctx context.Context) error {
	if l.p.Cache == nil {
		return nil
	}
	g, ctx := errgroup.WithContext(ctx)
	for _, f := range l.files() {
		g.Go(func() error { return l.saveFile(ctx, f) })
	}
	return g.Wait()
}

func (l *Link) saveFile(ctx context.Context, f file) error {
	var took time.Duration // by the last write
	for {
		select {
		case <-f.unsave:
		case <-ctx.Done():
			return ctx.Err()
		}
		delay := min(max(saveShare*took, saveSoon), saveDelay)
		for {
			if err := l.wait(ctx, delay); err != nil {
				raise(f.unsave) // flush writes it
				return err
			}
			began := time.Now()
			written := l.write(f)
			if took = time.Since(began); written {
				break
			}
			delay = saveAgain
		}
	}
}

// flush writes what has not been written when everything else has stopped.
func (l *Link) flush() {
	if l.p.Cache == nil {
		return
	}
	for _, f := range l.files() {
		select {
		case <-f.unsave:
			l.write(f)
		default:
		}
	}
}

func raise(token chan struct{}) {
	select {
	case token <- struct{}{}:
	default:
	}
}

// write says whether the file is written, or never will be.
func (l *Link) write(f file) bool {
	// Cleared before the state is read: a change after that is saved again.
	select {
	case <-f.unsave:
	default:
	}
	if f.name == viewName && !l.view.Get().Synced {
		// Half of what holds is not what holds: read back it would deny
		// callers whose entries had not come. It is written once it is whole.
		return true
	}
	raw, err := f.encode()
	if err == nil {
		err = l.p.Cache.Write(f.name, raw)
	}
	if err != nil {
		l.p.Log.Error("what the control plane told cannot be kept on disk; an agent that restarts while it is away would have the older state", "file", f.name, "error", err)
	}
	return err == nil
}
