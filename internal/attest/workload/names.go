package workload

import (
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"os"
	"os/user"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// namesLive bounds how long a renamed user keeps the old selector.
	namesLive = 10 * time.Second
	cacheSize = 1024
)

// nameCache remembers the user database's answers. Built without cgo, only
// /etc/passwd and /etc/group are asked.
type nameCache struct {
	mu    sync.Mutex // guards names
	names map[nameKey]nameEntry
}

type nameKey struct {
	group bool
	id    uint32
}

type nameEntry struct {
	name  string
	until time.Time
}

func (n *nameCache) user(id uint32) string  { return n.get(nameKey{false, id}) }
func (n *nameCache) group(id uint32) string { return n.get(nameKey{true, id}) }

// get returns "" for an id without a name.
func (n *nameCache) get(key nameKey) string {
	n.mu.Lock()
	e, ok := n.names[key]
	n.mu.Unlock()
	if ok && time.Now().Before(e.until) {
		return e.name
	}
	name := ""
	id := strconv.FormatUint(uint64(key.id), 10)
	if key.group {
		if g, err := user.LookupGroupId(id); err == nil {
			name = g.Name
		}
	} else if u, err := user.LookupId(id); err == nil {
		name = u.Username
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.names == nil || len(n.names) >= cacheSize {
		n.names = map[nameKey]nameEntry{}
	}
	n.names[key] = nameEntry{name, time.Now().Add(namesLive)}
	return name
}

// hashCache remembers the SHA-256 of executables by what stat says of them,
// ctime included, which cannot be set back.
type hashCache struct {
	busy chan struct{} // as many as may read a file now

	mu    sync.Mutex // guards what follows
	sums  map[fileID][sha256.Size]byte
	lines map[uint32]*line // by uid
}

// line is of one user's programs that read or wait.
type line struct {
	first chan struct{} // as many as may be in line with those of other users
	in    int
}

func newHashCache() hashCache {
	return hashCache{busy: make(chan struct{}, hashing), lines: map[uint32]*line{}}
}

const (
	// maxHashed is the largest executable that gets unix:sha256. Anybody can
	// make a file of exabytes that takes no room, and run it.
	maxHashed = 1 << 30
	// hashing at once: who changes his file all the time keeps no more of the
	// machine busy, and those whose hash is known do not wait.
	hashing = 2
)

// settle: a file changed just now may be changed again within the same tick
// of its time stamps; it is hashed again next time.
const settle = 2 * time.Second

// turn waits until a program of a user may read its file. However many programs
// a user has, those of others wait for a few of them only.
func (h *hashCache) turn(ctx context.Context, uid uint32) (done func(), err error) {
	h.mu.Lock()
	l := h.lines[uid]
	if l == nil {
		l = &line{first: make(chan struct{}, hashing)}
		h.lines[uid] = l
	}
	l.in++
	h.mu.Unlock()
	var taken []chan struct{}
	done = func() {
		for _, place := range taken {
			<-place
		}
		h.mu.Lock()
		defer h.mu.Unlock()
		if l.in--; l.in == 0 {
			delete(h.lines, uid)
		}
	}
	for _, place := range []chan struct{}{l.first, h.busy} {
		select {
		case place <- struct{}{}:
			taken = append(taken, place)
		case <-ctx.Done(): // whoever gave up waits no longer, and is not read for
			done()
			return nil, ctx.Err()
		}
	}
	return done, nil
}

func (h *hashCache) known(id fileID) (sum [sha256.Size]byte, ok bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	sum, ok = h.sums[id]
	return sum, ok
}

// sum hashes, for a program of a user, the file that path leads to, which must
// be the one with id.
func (h *hashCache) sum(ctx context.Context, uid uint32, path string, id fileID) (sum [sha256.Size]byte, err error) {
	f, err := os.Open(path)
	if err != nil {
		return sum, fmt.Errorf("read the executable: %w", err)
	}
	defer f.Close()
	before, err := hashID(f, id)
	if err != nil {
		return sum, err
	}
	if sum, ok := h.known(before); ok {
		return sum, nil
	}
	done, err := h.turn(ctx, uid)
	if err != nil {
		return sum, err
	}
	defer done()
	if sum, ok := h.known(before); ok {
		return sum, nil // another has read it meanwhile
	}
	hash := sha256.New()
	if _, err := io.Copy(hash, io.LimitReader(f, maxHashed)); err != nil {
		return sum, fmt.Errorf("read the executable: %w", err)
	}
	if after, err := hashID(f, id); err != nil || after != before {
		return sum, fmt.Errorf("the executable changed while it was read")
	}
	hash.Sum(sum[:0])
	if time.Since(time.Unix(before.ctime.Unix())) < settle {
		return sum, nil
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.sums == nil || len(h.sums) >= cacheSize {
		h.sums = map[fileID][sha256.Size]byte{}
	}
	h.sums[before] = sum
	return sum, nil
}

// hashID is the open file's id with its ctime; it must be the file with id.
func hashID(f *os.File, id fileID) (fileID, error) {
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return fileID{}, fmt.Errorf("read the executable: %w", err)
	}
	got := idOf(&st)
	plain := got
	plain.ctime = unix.Timespec{}
	if plain != id {
		return fileID{}, fmt.Errorf("the executable changed while it was read")
	}
	return got, nil
}
