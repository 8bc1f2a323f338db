package objectstore

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	randv2 "math/rand/v2"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// lock is one that this process holds.
type lock struct {
	holder   []byte // random, the object's value: tells ours from others'
	revision int64  // written by renew alone, read after done
	stop     context.CancelFunc
	done     chan struct{}
	lost     bool // read after done
}

func (s *Storage) lockName(name string) string {
	sum := sha256.Sum256([]byte(name))
	return s.config.Prefix + "/locks/" + hex.EncodeToString(sum[:16])
}

// Lock implements acmecert.Storage: by compare-and-set on one object, which
// the holder changes every third of LockTTL. One that has not changed for
// LockTTL, by the clock of whoever waits, is taken over.
func (s *Storage) Lock(ctx context.Context, name string) error {
	object := s.lockName(name)
	holder := make([]byte, 16)
	if _, err := rand.Read(holder); err != nil {
		return err
	}
	var seen int64 // revision
	var since time.Time
	for {
		value, revision, err := s.get(ctx, object)
		switch {
		case status.Code(err) == codes.NotFound:
			revision, seen, err = 0, 0, nil
		case err != nil && revision == 0:
			return fmt.Errorf("lock %s: %w", name, err)
		case err == nil && bytes.Equal(value, holder):
			return s.hold(name, object, holder, revision) // an answer was lost
		case revision != seen:
			seen, since = revision, time.Now()
		}
		if revision == 0 || time.Since(since) > s.config.LockTTL {
			next, err := s.put(ctx, object, holder, &revision)
			if err == nil {
				if revision != 0 {
					s.log.Warn("a lock is taken over from a holder that was silent", "lock", name, "for", s.config.LockTTL)
				}
				return s.hold(name, object, holder, next)
			}
			if c := status.Code(err); c != codes.FailedPrecondition && c != codes.Unavailable {
				return fmt.Errorf("lock %s: %w", name, err)
			}
		}
		if err := wait(ctx, s.config.LockTTL/10); err != nil {
			return fmt.Errorf("lock %s, which another holds: %w", name, err)
		}
	}
}

// wait about as long as d, and not longer than half a second.
func wait(ctx context.Context, d time.Duration) error {
	d = min(d, 500*time.Millisecond)
	timer := time.NewTimer(d/2 + time.Duration(randv2.Int64N(int64(d))))
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// hold renews a lock until Unlock.
func (s *Storage) hold(name, object string, holder []byte, revision int64) error {
	ctx, stop := context.WithCancel(context.Background())
	l := &lock{holder: holder, revision: revision, stop: stop, done: make(chan struct{})}
	s.mu.Lock()
	closed := s.closed
	old := s.held[name]
	if !closed {
		s.held[name] = l
	}
	s.mu.Unlock()
	if closed {
		stop()
		_ = s.remove(context.Background(), object, &revision) // it ends by itself otherwise
		return fmt.Errorf("lock %s: the storage is closed", name)
	}
	if old != nil { // lost, and now won by another of this process
		old.stop()
		<-old.done
	}
	go func() {
		defer close(l.done)
		s.renew(ctx, name, object, l)
	}()
	return nil
}

// errTaken: another holds the lock.
var errTaken = errors.New("another holds it")

func (s *Storage) renew(ctx context.Context, name, object string, l *lock) {
	last := time.Now()
	ticker := time.NewTicker(s.config.LockTTL / 3)
	defer ticker.Stop()
	for {
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return
		}
		revision, err := s.renewOnce(ctx, object, l)
		if err == nil {
			l.revision, last = revision, time.Now()
			continue
		}
		if ctx.Err() != nil {
			return
		}
		if errors.Is(err, errTaken) || time.Since(last) > s.config.LockTTL {
			l.lost = true
			s.log.Error("a lock is lost while it is held: another replica may do the same work", "lock", name, "error", err)
			return
		}
	}
}

// renewOnce changes the object that others watch. A call that hangs leaves time
// for another one before they take the lock over.
func (s *Storage) renewOnce(ctx context.Context, object string, l *lock) (int64, error) {
	ctx, cancel := context.WithTimeout(ctx, s.config.LockTTL/3)
	defer cancel()
	revision, err := s.put(ctx, object, l.holder, &l.revision)
	if status.Code(err) != codes.FailedPrecondition {
		return revision, err
	}
	// Another took it, or the answer to our own last change was lost.
	value, revision, err := s.get(ctx, object)
	if err == nil && !bytes.Equal(value, l.holder) {
		err = errTaken
	}
	return revision, err
}

// Unlock implements acmecert.Storage.
func (s *Storage) Unlock(ctx context.Context, name string) error {
	s.mu.Lock()
	l := s.held[name]
	delete(s.held, name)
	s.mu.Unlock()
	if l == nil {
		return fmt.Errorf("unlock %s: it is not locked here", name)
	}
	l.stop()
	<-l.done
	if l.lost {
		return fmt.Errorf("unlock %s: it was lost, another may hold it", name)
	}
	object := s.lockName(name)
	err := s.remove(ctx, object, &l.revision)
	if status.Code(err) == codes.FailedPrecondition {
		// A renewal that was stopped halfway may have gone through.
		value, revision, getErr := s.get(ctx, object)
		if getErr == nil && bytes.Equal(value, l.holder) {
			err = s.remove(ctx, object, &revision)
		}
	}
	if err != nil {
		return fmt.Errorf("unlock %s: %w", name, err)
	}
	return nil
}
