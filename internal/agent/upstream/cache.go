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
	"google.golang.org/protobuf/encoding/protodelim"
)

const (
	viewName = "view"
	// saveDelay lets a storm be one write.
	saveDelay = 500 * time.Millisecond
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

func (l *Link) loadView() {
	if l.p.Cache == nil {
		return
	}
	raw, err := l.p.Cache.Read(viewName)
	if fault.Is(err, fault.NotFound) {
		return
	}
	if err == nil {
		err = l.decodeView(raw)
	}
	if err != nil {
		l.p.Log.Warn("what this agent cached of the control plane is not used in full", "reason", err)
	}
}

// save writes the view to the cache soon after it changes, and at the end.
func (l *Link) save(ctx context.Context) error {
	if l.p.Cache == nil {
		return nil
	}
	for {
		select {
		case <-ctx.Done():
			select {
			case <-l.unsave:
				l.saveNow()
			default:
			}
			return ctx.Err()
		case <-l.unsave:
		}
		_ = l.wait(ctx, saveDelay)
		l.saveNow()
	}
}

func (l *Link) saveNow() {
	// Cleared before the state is read: a change after that is saved again.
	select {
	case <-l.unsave:
	default:
	}
	raw, err := l.encodeView()
	if err == nil {
		err = l.p.Cache.Write(viewName, raw)
	}
	if err != nil {
		l.p.Log.Error("what the control plane told cannot be kept on disk; an agent that restarts while it is away would have the older state", "error", err)
	}
}
