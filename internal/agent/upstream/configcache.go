package upstream

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"time"

	nodev1 "github.com/legation-io/legation/api/node/v1"
	"github.com/legation-io/legation/internal/distribute"
	"github.com/legation-io/legation/internal/fault"
	"google.golang.org/protobuf/encoding/protodelim"
	"google.golang.org/protobuf/proto"
)

const (
	configName = "config"
	// maxKept bounds the subjects whose configuration is remembered.
	maxKept = 256
	// offlineAfter is how long a new subject waits for the control plane
	// before it is served from the cache.
	offlineAfter = time.Second
)

// contentKey is a subject but for its id: a session that is opened again
// after the agent restarted has another id and the same content.
type contentKey [sha256.Size]byte

// kept is the last accepted configuration of one subject.
type kept struct {
	subject   *nodev1.Subject
	resources map[resourceKey]*distribute.Resource
}

func keyOf(s *nodev1.Subject) (contentKey, *nodev1.Subject) {
	s = proto.Clone(s).(*nodev1.Subject)
	s.Id, s.Held = "", nil
	raw, err := proto.MarshalOptions{Deterministic: true}.Marshal(s)
	if err != nil {
		return contentKey{}, s
	}
	return sha256.Sum256(raw), s
}

// rememberLocked keeps what a subject was given beyond its watch.
func (c *configs) rememberLocked(s *nodev1.Subject, resources map[resourceKey]*distribute.Resource) {
	key, content := keyOf(s)
	if i := slices.Index(c.order, key); i >= 0 {
		c.order = slices.Delete(c.order, i, i+1)
	} else if len(c.order) >= maxKept {
		delete(c.kept, c.order[0])
		c.order = c.order[1:]
	}
	c.order = append(c.order, key)
	c.kept[key] = &kept{content, maps.Clone(resources)}
}

// serveOffline gives wanted subjects what the cache has while no replica
// answers, until ctx ends.
func (l *Link) serveOffline(ctx context.Context) error {
	for {
		var late <-chan time.Time
		view, changed := l.view.Load()
		if !view.Connected && l.lacking() {
			if view.LastError != "" {
				l.giveKept()
			} else {
				late = time.After(offlineAfter)
			}
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-changed:
		case <-l.configs.offline:
		case <-late:
			if v := l.view.Get(); !v.Connected {
				l.giveKept()
			}
		}
	}
}

// lacking reports whether a wanted subject could be served from the cache.
func (l *Link) lacking() bool {
	c := l.configs
	c.mu.Lock()
	defer c.mu.Unlock()
	for id, s := range c.wanted {
		key, _ := keyOf(s)
		if c.given[id] == nil && c.kept[key] != nil {
			return true
		}
	}
	return false
}

func (l *Link) giveKept() {
	c := l.configs
	view := l.view.Get()
	c.mu.Lock()
	updates := map[string]ConfigUpdate{}
	for id, s := range c.wanted {
		key, _ := keyOf(s)
		k := c.kept[key]
		entry := view.Entries[s.GetEntry()]
		if c.given[id] != nil || k == nil || entry.GetSpiffeId() != s.GetSpiffeId() || entry.GetBlocked() {
			continue
		}
		var update ConfigUpdate
		for _, r := range k.resources {
			update.Changes = append(update.Changes, distribute.Change{Scope: SessionScope(id), Type: r.Type, Name: r.Name, Resource: r})
		}
		updates[id] = update
	}
	c.mu.Unlock()
	for id, update := range updates {
		if err := l.give(id, update, true); err != nil {
			l.p.Log.Error("the cached configuration of a proxy is refused", "subject", id, "reason", err)
			c.mu.Lock()
			if s := c.wanted[id]; s != nil {
				key, _ := keyOf(s)
				delete(c.kept, key)
			}
			c.mu.Unlock()
			continue
		}
		l.p.Log.Info("a proxy is configured from the cache while no control plane answers", "subject", id)
	}
}

// give hands an update to OnConfig and notes what was accepted. From the
// cache it gives only to who has nothing.
func (l *Link) give(id string, update ConfigUpdate, cached bool) error {
	c := l.configs
	c.giving.Lock() // calls do not overlap
	defer c.giving.Unlock()
	c.mu.Lock()
	stale := c.wanted[id] == nil || cached && (c.given[id] != nil || c.asked[id])
	c.mu.Unlock()
	if stale {
		return nil
	}
	if l.p.OnConfig != nil {
		if err := l.p.OnConfig(id, update); err != nil {
			return err
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	subject := c.wanted[id]
	if subject == nil {
		return nil
	}
	given := c.given[id]
	if given == nil {
		given = map[resourceKey]*distribute.Resource{}
		c.given[id] = given
	}
	for _, change := range update.Changes {
		key := resourceKey{change.Type, change.Name}
		if change.Resource == nil {
			delete(given, key)
		} else {
			given[key] = change.Resource
		}
	}
	c.rememberLocked(subject, given)
	if !cached {
		raise(l.unsaveConfig)
	}
	return nil
}

// encodeConfig is the kept configurations: a hello, then for each a subject
// and an envelope; a body stands where its hash comes first.
func (l *Link) encodeConfig() ([]byte, error) {
	c := l.configs
	c.mu.Lock()
	defer c.mu.Unlock()
	var out bytes.Buffer
	if _, err := protodelim.MarshalTo(&out, l.hello()); err != nil {
		return nil, err
	}
	written := map[string]bool{}
	for _, key := range c.order {
		k := c.kept[key]
		if k == nil {
			continue
		}
		e := &nodev1.Envelope{}
		for name, r := range k.resources {
			item := &nodev1.ConfigResource{TypeUrl: name.typeURL, Name: name.name, Hash: r.Version}
			if !written[r.Version] {
				written[r.Version] = true
				item.Body = r.Body
			}
			e.Resources = append(e.Resources, item)
		}
		for _, m := range []proto.Message{k.subject, e} {
			if _, err := protodelim.MarshalTo(&out, m); err != nil {
				return nil, err
			}
		}
	}
	return out.Bytes(), nil
}

func (l *Link) decodeConfig(raw []byte) error {
	in := bufio.NewReader(bytes.NewReader(raw))
	options := protodelim.UnmarshalOptions{MaxSize: maxMessage}
	var hello nodev1.Hello
	if err := options.UnmarshalFrom(in, &hello); err != nil {
		return fmt.Errorf("it does not parse: %w", err)
	}
	if err := l.checkHello(&hello); err != nil {
		return err
	}
	bodies := map[string][]byte{}
	c := l.configs
	c.mu.Lock()
	defer c.mu.Unlock()
	for range maxKept {
		s, e := new(nodev1.Subject), new(nodev1.Envelope)
		err := options.UnmarshalFrom(in, s)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err == nil {
			err = options.UnmarshalFrom(in, e)
		}
		if err != nil {
			return fmt.Errorf("it does not parse: %w", err)
		}
		resources := map[resourceKey]*distribute.Resource{}
		for _, r := range e.GetResources() {
			if _, ok := bodies[r.GetHash()]; !ok {
				bodies[r.GetHash()] = r.GetBody()
			}
			body := bodies[r.GetHash()]
			if distribute.VersionOf(body) != r.GetHash() {
				return fault.New(fault.Invalid, "%s %q does not have its hash", r.GetTypeUrl(), r.GetName())
			}
			resources[resourceKey{r.GetTypeUrl(), r.GetName()}] = &distribute.Resource{Type: r.GetTypeUrl(), Name: r.GetName(), Version: r.GetHash(), Body: body}
		}
		c.rememberLocked(s, resources)
	}
	return nil
}
