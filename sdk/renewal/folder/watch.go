package folder

import (
	"context"
	"os"
	"path/filepath"
	"time"

	"github.com/fsnotify/fsnotify"

	"github.com/legation-io/legation/sdk/renewal"
)

// watcher holds each key once, however slow its reader.
type watcher struct {
	pending map[renewal.Key]struct{}
	wake    chan struct{}
}

// settle is how long a burst of events of the folder is waited for: editors
// and kubelets change several things at once.
const settle = 50 * time.Millisecond

func (f *Folder) notify(keys ...renewal.Key) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for w := range f.watchers {
		for _, k := range keys {
			w.pending[k] = struct{}{}
		}
		if len(keys) > 0 {
			select {
			case w.wake <- struct{}{}:
			default:
			}
		}
	}
}

// Watch implements renewal.Store.
func (f *Folder) Watch(ctx context.Context, changed func(renewal.Key)) error {
	w := &watcher{pending: make(map[renewal.Key]struct{}), wake: make(chan struct{}, 1)}
	f.mu.Lock()
	f.watchers[w] = struct{}{}
	for k := range f.declared {
		w.pending[k] = struct{}{}
	}
	f.mu.Unlock()
	w.wake <- struct{}{}
	defer func() {
		f.mu.Lock()
		delete(f.watchers, w)
		f.mu.Unlock()
	}()

	events, errs, closeEvents := f.events()
	defer closeEvents()
	poll := time.NewTicker(f.cfg.Poll)
	defer poll.Stop()
	seen := f.stats()
	var soon <-chan time.Time
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-w.wake:
			f.mu.Lock()
			pending := w.pending
			w.pending = make(map[renewal.Key]struct{})
			f.mu.Unlock()
			for k := range pending {
				changed(k)
			}
		case e, ok := <-events:
			if !ok {
				events = nil
				continue
			}
			if filepath.Dir(e.Name) == filepath.Clean(f.statusDir()) {
				if k, ok := keyOf(e.Name); ok {
					changed(k)
				}
				continue
			}
			if soon == nil {
				soon = time.After(settle)
			}
		case err, ok := <-errs:
			if !ok {
				errs = nil
				continue
			}
			f.log.Warn("the system does not tell of changes any more; looking regularly", "every", f.cfg.Poll, "error", err)
		case <-soon:
			soon = nil
			f.rescan(ctx)
		case <-poll.C:
			f.rescan(ctx)
			now := f.stats()
			for k, v := range now {
				if seen[k] != v {
					changed(k)
				}
			}
			seen = now
		}
	}
}

func (f *Folder) rescan(ctx context.Context) {
	keys, err := f.scan(ctx)
	if err != nil && ctx.Err() == nil {
		f.log.Error("the folder of certificates cannot be read; what it last declared stays", "folder", f.cfg.Dir, "error", err)
	}
	f.notify(keys...)
}

// events are what the system tells; none where it cannot.
func (f *Folder) events() (<-chan fsnotify.Event, <-chan error, func()) {
	n, err := fsnotify.NewWatcher()
	if err == nil {
		err = n.Add(f.cfg.Dir)
		if err == nil {
			err = n.Add(f.statusDir())
		}
		if err == nil {
			return n.Events, n.Errors, func() { n.Close() }
		}
		n.Close()
	}
	f.log.Warn("the system does not tell of changes; looking regularly", "every", f.cfg.Poll, "error", err)
	return nil, nil, func() {}
}

type stat struct {
	modified time.Time
	size     int64
}

// stats tells apart the versions of the files of status.
func (f *Folder) stats() map[renewal.Key]stat {
	entries, err := os.ReadDir(f.statusDir())
	if err != nil {
		return nil
	}
	out := make(map[renewal.Key]stat, len(entries))
	for _, e := range entries {
		k, ok := keyOf(e.Name())
		if !ok {
			continue
		}
		if info, err := e.Info(); err == nil {
			out[k] = stat{info.ModTime(), info.Size()}
		}
	}
	return out
}
