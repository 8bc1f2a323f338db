package ledger

import (
	"cmp"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/legation-io/legation/internal/fault"
)

// Filter selects records; zero fields select everything.
type Filter struct {
	Authority    string
	Kind         Kind
	Profile      string
	Namespace    string
	SPIFFEID     string
	Node         string
	Instance     string
	SerialPrefix string // lower-case hex
	// Expiry window: NotAfter in [ExpiresFrom, ExpiresUntil).
	ExpiresFrom  time.Time
	ExpiresUntil time.Time
	// Limit bounds what is returned, not what is counted; 0 is no limit.
	Limit int
}

func (f *Filter) matches(r *Record) bool {
	return (f.Authority == "" || r.Authority == f.Authority) &&
		(f.Kind == 0 || r.Kind == f.Kind) &&
		(f.Profile == "" || r.Profile == f.Profile) &&
		(f.Namespace == "" || r.Namespace == f.Namespace) &&
		(f.SPIFFEID == "" || r.SPIFFEID == f.SPIFFEID) &&
		(f.Node == "" || r.Node == f.Node) &&
		(f.Instance == "" || r.Instance == f.Instance) &&
		strings.HasPrefix(r.Serial, f.SerialPrefix) &&
		(f.ExpiresFrom.IsZero() || !r.NotAfter.Before(f.ExpiresFrom)) &&
		(f.ExpiresUntil.IsZero() || r.NotAfter.Before(f.ExpiresUntil))
}

// index is the inventory in memory.
type index struct {
	mu       sync.RWMutex // guards what follows
	segments map[string]*segment
	bySerial map[string]*Record
	byID     map[string][]*Record
	byNode   map[string][]*Record
	read     int64 // every segment up to this revision was seen
	changed  chan struct{}
	watching bool
}

type segment struct {
	Segment
	notAfter time.Time // of the last of its records
}

func (x *index) init() {
	x.segments = make(map[string]*segment)
	x.bySerial = make(map[string]*Record)
	x.byID = make(map[string][]*Record)
	x.byNode = make(map[string][]*Record)
	x.changed = make(chan struct{})
}

func (x *index) add(s Segment) (segments, records int) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if _, known := x.segments[s.Name]; !known {
		seg := &segment{Segment: s}
		for i := range s.Records {
			r := &s.Records[i]
			if r.NotAfter.After(seg.notAfter) {
				seg.notAfter = r.NotAfter
			}
			x.bySerial[r.Serial] = r
			x.byID[r.SPIFFEID] = append(x.byID[r.SPIFFEID], r)
			if r.Node != "" {
				x.byNode[r.Node] = append(x.byNode[r.Node], r)
			}
		}
		x.segments[s.Name] = seg
	}
	return len(x.segments), len(x.bySerial)
}

func (x *index) drop(name string) (segments, records int) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if seg := x.segments[name]; seg != nil {
		delete(x.segments, name)
		gone := make(map[*Record]bool, len(seg.Records))
		ids, nodes := make(map[string]bool), make(map[string]bool)
		for i := range seg.Records {
			r := &seg.Records[i]
			gone[r] = true
			if x.bySerial[r.Serial] == r {
				delete(x.bySerial, r.Serial)
			}
			ids[r.SPIFFEID], nodes[r.Node] = true, true
		}
		dropFrom(x.byID, ids, gone)
		dropFrom(x.byNode, nodes, gone)
	}
	return len(x.segments), len(x.bySerial)
}

func dropFrom(m map[string][]*Record, keys map[string]bool, gone map[*Record]bool) {
	for key := range keys {
		left := slices.DeleteFunc(m[key], func(r *Record) bool { return gone[r] })
		if len(left) == 0 {
			delete(m, key)
		} else {
			m[key] = left
		}
	}
}

// List returns what the filter selects, newest first, and how many there are
// without its limit.
func (j *Journal) List(f Filter) ([]Record, int) {
	x := &j.index
	x.mu.RLock()
	var found []*Record
	collect := func(r *Record) {
		if f.matches(r) {
			found = append(found, r)
		}
	}
	switch {
	case f.SPIFFEID != "":
		for _, r := range x.byID[f.SPIFFEID] {
			collect(r)
		}
	case f.Node != "":
		for _, r := range x.byNode[f.Node] {
			collect(r)
		}
	default:
		for _, r := range x.bySerial {
			collect(r)
		}
	}
	x.mu.RUnlock()
	slices.SortFunc(found, func(a, b *Record) int {
		return cmp.Or(b.IssuedAt.Compare(a.IssuedAt), strings.Compare(a.Serial, b.Serial))
	})
	total := len(found)
	if f.Limit > 0 && total > f.Limit {
		found = found[:f.Limit]
	}
	records := make([]Record, len(found))
	for i, r := range found {
		records[i] = *r
	}
	return records, total
}

// BySerial returns one record; fault.NotFound when the journal has none.
func (j *Journal) BySerial(serial string) (Record, error) {
	j.index.mu.RLock()
	defer j.index.mu.RUnlock()
	if r := j.index.bySerial[serial]; r != nil {
		return *r, nil
	}
	return Record{}, fault.New(fault.NotFound, "no certificate with serial %s is in the journal of this trust domain: it was never issued here, or expired more than an hour ago", serial)
}
