package policy

import (
	"context"
	"log/slog"
	"slices"
	"time"

	"github.com/fsnotify/fsnotify"
)

const (
	defaultPoll = 10 * time.Second
	settle      = 20 * time.Millisecond // events of one change come together
)

// follow calls look now, whenever something happens in one of the folders, and
// every poll, until ctx ends; by one goroutine. Where folders cannot be
// watched, polling alone remains.
func follow(ctx context.Context, log *slog.Logger, poll time.Duration, folders func() []string, look func()) {
	if poll <= 0 {
		poll = defaultPoll
	}
	var events chan fsnotify.Event
	watcher, err := fsnotify.NewWatcher()
	if err != nil {
		log.Warn("policy files are polled only: no watcher", "every", poll, "error", err)
	} else {
		defer watcher.Close()
		events = watcher.Events
	}
	var watched []string
	rewatch := func() {
		for range 16 {
			if watcher == nil {
				return
			}
			now := folders()
			for _, dir := range watched {
				if !slices.Contains(now, dir) {
					watcher.Remove(dir) // gone already, most often
				}
			}
			for _, dir := range now {
				// Added again each time: the folder behind a name may be another.
				_ = watcher.Add(dir) // what is gone already is not there next time
			}
			// What was made in a folder before it was watched is no event: until
			// no other folders are found.
			if slices.Equal(now, watched) {
				return
			}
			watched = now
		}
	}
	tick := time.NewTicker(poll)
	defer tick.Stop()
	var errs chan error
	if watcher != nil {
		errs = watcher.Errors
	}
	rewatch()
	look()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		case <-errs: // an overflow: look
		case <-events:
			timer := time.NewTimer(settle)
		more:
			for {
				select {
				case <-ctx.Done():
					timer.Stop()
					return
				case <-events:
				case <-timer.C:
					break more
				}
			}
		}
		rewatch()
		look()
	}
}
