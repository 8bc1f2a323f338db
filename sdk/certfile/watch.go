package certfile

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/fsnotify/fsnotify"
)

// Run notices changes until ctx ends, and returns nil then. It may be called
// once at a time.
func (s *Source) Run(ctx context.Context) error {
	w := &watch{source: s}
	defer w.close()
	poll := time.NewTicker(s.config.Poll)
	defer poll.Stop()
	settled := time.NewTimer(0) // what changed between New and now
	defer settled.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-poll.C:
		case <-settled.C:
		case event, ok := <-w.events():
			if ok && !w.concerns(event) {
				continue
			}
			settled.Reset(s.config.Settle)
			continue
		case <-w.errors():
			// Events were lost: whatever they were, look.
			settled.Reset(s.config.Settle)
			continue
		}
		// First watch, then read: what changes in between is an event.
		w.update()
		_ = s.Reload() // logged, counted, and in Status
		if w.update() {
			settled.Reset(s.config.Settle) // links lead elsewhere now
		}
		if w.watcher == nil {
			poll.Reset(s.slow())
		} else {
			poll.Reset(s.config.Poll)
		}
	}
}

// watch is the folders that are watched now. It belongs to Run's goroutine.
type watch struct {
	source  *Source
	watcher *fsnotify.Watcher   // nil when there is none
	folders map[string]bool     // that are watched
	names   map[string]struct{} // whose events count
}

func (w *watch) events() chan fsnotify.Event {
	if w.watcher == nil {
		return nil
	}
	return w.watcher.Events
}

func (w *watch) errors() chan error {
	if w.watcher == nil {
		return nil
	}
	return w.watcher.Errors
}

func (w *watch) close() {
	if w.watcher != nil {
		_ = w.watcher.Close() // nothing is left to do about it
		w.watcher = nil
	}
	w.source.watching(false, nil)
}

// concerns says whether an event is about a file, a link that leads to one, or
// a folder that is watched.
func (w *watch) concerns(e fsnotify.Event) bool {
	if w.folders[e.Name] {
		if e.Has(fsnotify.Remove) || e.Has(fsnotify.Rename) {
			delete(w.folders, e.Name) // its watch went with it
		}
		return true
	}
	_, ok := w.names[e.Name]
	return ok
}

// update watches the folders that the paths lead through now, and says whether
// those are others than before.
func (w *watch) update() bool {
	if w.watcher == nil {
		watcher, err := fsnotify.NewWatcher()
		if err != nil {
			w.source.watching(false, limits(err))
			return false
		}
		w.watcher, w.folders = watcher, map[string]bool{}
	}
	folders := map[string]bool{}
	w.names = map[string]struct{}{}
	for _, path := range w.source.config.files() {
		trail(path, folders, w.names)
	}
	changed := false
	for folder := range w.folders {
		if !folders[folder] {
			_ = w.watcher.Remove(folder) // gone already, or no longer of interest
			delete(w.folders, folder)
		}
	}
	for folder := range folders {
		if w.folders[folder] {
			continue
		}
		if err := w.watcher.Add(folder); err != nil {
			if errors.Is(err, os.ErrNotExist) {
				changed = true // went away just now; look again
				continue
			}
			// Half of the folders would be worse than none: nobody would know.
			_ = w.watcher.Close()
			w.watcher = nil
			w.source.watching(false, limits(fmt.Errorf("watch %s: %w", folder, err)))
			return false
		}
		w.folders[folder], changed = true, true
	}
	w.source.watching(true, nil)
	return changed
}

// limits adds the remedy to the kernel's terse words.
func limits(err error) error {
	return fmt.Errorf("%w (on Linux see fs.inotify.max_user_instances and max_user_watches)", err)
}

// maxLinks as in the kernel's path walk.
const maxLinks = 40

// trail follows a path component by component and notes, for the file and for
// each link on the way, the folder to watch and the name whose events count. Where
// the path ends early, it is what ought to come next.
func trail(path string, folders map[string]bool, names map[string]struct{}) {
	at := string(filepath.Separator)
	rest := strings.Split(filepath.Clean(path), at)
	note := func(name string) {
		folders[at] = true
		names[name] = struct{}{}
	}
	for links := 0; len(rest) > 0 && links <= maxLinks; {
		part := rest[0]
		rest = rest[1:]
		switch part {
		case "", ".":
			continue
		case "..":
			at = filepath.Dir(at)
			continue
		}
		name := filepath.Join(at, part)
		info, err := os.Lstat(name)
		if err != nil {
			note(name)
			return
		}
		if info.Mode()&os.ModeSymlink == 0 {
			if len(rest) == 0 {
				note(name)
				return
			}
			at = name
			continue
		}
		note(name)
		target, err := os.Readlink(name)
		if err != nil {
			return
		}
		links++
		rest = append(strings.Split(target, string(filepath.Separator)), rest...)
		if filepath.IsAbs(target) {
			at = string(filepath.Separator)
		}
	}
}
