// Package secretmem answers "where do secret bytes lie": in pages of their
// own that are locked (never swapped), left out of core dumps, not inherited
// by a forked child, and wiped when given back.
//
// How far Go allows it. The bytes kept here (PKCS #8 keys that are handed to
// workloads and Envoys, the key of the sealed cache) lie outside the garbage
// collected heap and are not copied by it. What package crypto computes with
// does not: an *ecdsa.PrivateKey and the intermediate values of a signature
// live on the heap and on stacks, which the runtime may copy and does not
// wipe; so do the buffers that gRPC writes to a socket. For those the process
// as a whole is hardened (Harden): not dumpable, so that no other process of
// the same user can trace it or read its memory, no core files, and, where
// the memory lock limit allows it, nothing of it is ever swapped. Root on the
// machine can read everything.
//
// Where. All of this is so on Linux. On other Unixes (macOS, the BSDs) pages
// are locked and wiped, but a core dump and a forked child have them, and
// Harden returns errors.ErrUnsupported. Elsewhere (Windows) the bytes lie on
// the Go heap and are wiped, nothing more: Locked returns false.
package secretmem

import (
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"time"
)

const (
	slotSize = 256 // a P-256 key in PKCS #8 has 138 bytes
	// quarantine is how long a wiped slot is not given out again: whoever
	// wrongly still reads it finds zeros, not another's key.
	quarantine = 10 * time.Minute
)

// Buffer is a piece of locked memory.
type Buffer struct {
	mu     sync.Mutex // guards what follows
	bytes  []byte
	region []byte // of its own when larger than a slot
	slot   []byte // otherwise, from the shared pages
}

// New returns size zero bytes. It fails only when the kernel has no memory;
// see Locked for what could not be locked.
func New(size int) (*Buffer, error) {
	if size <= 0 {
		return nil, fmt.Errorf("secret memory of %d bytes: the size must be positive", size)
	}
	if size > slotSize {
		region, err := mapPages(size)
		if err != nil {
			return nil, err
		}
		return &Buffer{bytes: region[:size:size], region: region}, nil
	}
	slot, err := pages.take()
	if err != nil {
		return nil, err
	}
	return &Buffer{bytes: slot[:size:size], slot: slot}, nil
}

// From moves secret bytes here: they are copied and the source is wiped.
func From(source []byte) (*Buffer, error) {
	b, err := New(len(source))
	if err != nil {
		return nil, err
	}
	copy(b.bytes, source)
	clear(source)
	return b, nil
}

// Bytes are the secret itself, nil after Close. The slice must not be used
// after Close: it reads as zeros then, or is gone.
func (b *Buffer) Bytes() []byte {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.bytes
}

// Close wipes the bytes and gives the memory back. It may be called twice.
func (b *Buffer) Close() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	clear(b.bytes)
	b.bytes = nil
	if b.slot != nil {
		pages.giveBack(b.slot)
		b.slot = nil
	}
	if b.region != nil {
		err := unmapRegion(b.region)
		b.region = nil
		return err
	}
	return nil
}

// Locked reports whether every page so far could be locked; when not, raise
// RLIMIT_MEMLOCK (systemd: LimitMEMLOCK=).
func Locked() bool { return unlocked.Load() == 0 }

var (
	pages    pool
	unlocked atomic.Int64 // regions that could not be locked
)

// pool cuts locked pages into slots.
type pool struct {
	mu      sync.Mutex // guards what follows
	free    [][]byte
	resting []resting // oldest first
}

type resting struct {
	slot  []byte
	since time.Time
}

func (p *pool) take() ([]byte, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for len(p.resting) > 0 && time.Since(p.resting[0].since) > quarantine {
		p.free = append(p.free, p.resting[0].slot)
		p.resting = p.resting[1:]
	}
	if len(p.free) == 0 {
		page, err := mapPages(os.Getpagesize())
		if err != nil {
			return nil, err
		}
		for ; len(page) >= slotSize; page = page[slotSize:] {
			p.free = append(p.free, page[:slotSize:slotSize])
		}
	}
	slot := p.free[len(p.free)-1]
	p.free = p.free[:len(p.free)-1]
	return slot, nil
}

func (p *pool) giveBack(slot []byte) {
	clear(slot)
	p.mu.Lock()
	defer p.mu.Unlock()
	p.resting = append(p.resting, resting{slot, time.Now()})
}

func mapPages(size int) ([]byte, error) {
	page := os.Getpagesize()
	region, locked, err := mapRegion((size + page - 1) / page * page)
	if err != nil {
		return nil, err
	}
	if !locked {
		unlocked.Add(1)
	}
	return region, nil
}
