package etcd

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/fnv"
	"os"
	"runtime/debug"
	"slices"

	"go.etcd.io/etcd/server/v3/storage/backend"
	"go.etcd.io/etcd/server/v3/storage/schema"
	"golang.org/x/sys/unix"
)

// pageFile reads bbolt's file format (bbolt:internal/common: page.go, meta.go,
// bucket.go) with a check at every step, where bbolt itself would panic, loop
// or fault on damage. It only reads.
//
// A page is a header (id u64, flags u16, count u16, overflow u32), then count
// elements, then keys and values. Numbers are in the machine's byte order.
type pageFile struct {
	data     []byte // the whole file, mapped
	pageSize uint64
	end      uint64 // number of pages in use, the high-water mark
	root     uint64
	seen     map[uint64]struct{} // pages reached, each once
	visit    func(bucket string, key, value []byte) error
}

const (
	pageHeader   = 16
	elementSize  = 16
	bucketHeader = 16
	flagBranch   = 1
	flagLeaf     = 2
	flagMeta     = 4
	flagBucket   = 1 // of a leaf element
	boltMagic    = 0xED0CDAED
	boltVersion  = 2
)

// walkPages checks the whole file and passes each key and value to visit.
func walkPages(path string, visit func(bucket string, key, value []byte) error) (err error) {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return err
	}
	if st.Size() < 2*4096 {
		return fmt.Errorf("%s has %d bytes and was cut short", path, st.Size())
	}
	data, err := unix.Mmap(int(f.Fd()), 0, int(st.Size()), unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		return fmt.Errorf("map %s: %w", path, err)
	}
	defer func() { err = errors.Join(err, unix.Munmap(data)) }()
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true)) // a disk that fails to read
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("%s cannot be read: %v", path, p)
		}
	}()
	pf := &pageFile{data: data, seen: map[uint64]struct{}{}, visit: visit}
	if err := pf.meta(); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	if err := pf.tree(pf.root, "", nil, nil); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	return nil
}

// meta takes the newer of the two meta pages that are whole: a power cut may
// tear the one being written.
func (f *pageFile) meta() error {
	newest, found := uint64(0), false
	for _, at := range []uint64{0, 4096, uint64(os.Getpagesize())} {
		if at+pageHeader+64 > uint64(len(f.data)) {
			continue
		}
		m := f.data[at+pageHeader:]
		h := fnv.New64a()
		h.Write(m[:56])
		ne := binary.NativeEndian
		if ne.Uint16(f.data[at+8:]) != flagMeta || ne.Uint32(m) != boltMagic || ne.Uint32(m[4:]) != boltVersion || ne.Uint64(m[56:]) != h.Sum64() {
			continue
		}
		if txid := ne.Uint64(m[48:]); !found || txid > newest {
			newest, found = txid, true
			f.pageSize, f.root, f.end = uint64(ne.Uint32(m[8:])), ne.Uint64(m[16:]), ne.Uint64(m[40:])
		}
	}
	if !found {
		return errors.New("neither of its two meta pages is whole")
	}
	if f.pageSize < 512 || f.pageSize&(f.pageSize-1) != 0 || f.end > uint64(len(f.data))/f.pageSize {
		return fmt.Errorf("it should have %d pages of %d bytes and has %d bytes: it was cut short", f.end, f.pageSize, len(f.data))
	}
	return nil
}

// tree checks the page and all below it; all its keys lie in [low, high).
func (f *pageFile) tree(id uint64, bucket string, low, high []byte) error {
	if id < 2 || id >= f.end {
		return fmt.Errorf("page %d lies outside of the file", id)
	}
	if _, dup := f.seen[id]; dup {
		return fmt.Errorf("page %d is used twice", id)
	}
	ne, at := binary.NativeEndian, id*f.pageSize
	overflow := uint64(ne.Uint32(f.data[at+12:]))
	if ne.Uint64(f.data[at:]) != id || id+overflow >= f.end {
		return fmt.Errorf("page %d has a damaged header", id)
	}
	for p := id; p <= id+overflow; p++ {
		f.seen[p] = struct{}{}
	}
	return f.page(f.data[at:at+(overflow+1)*f.pageSize], fmt.Sprintf("page %d", id), bucket, low, high)
}

func (f *pageFile) page(p []byte, name, bucket string, low, high []byte) error {
	ne := binary.NativeEndian
	flags, count := ne.Uint16(p[8:]), uint64(ne.Uint16(p[10:]))
	if flags != flagBranch && flags != flagLeaf || flags == flagBranch && count == 0 {
		return fmt.Errorf("%s is neither branch nor leaf", name)
	}
	if pageHeader+count*elementSize > uint64(len(p)) {
		return fmt.Errorf("%s has more elements than room", name)
	}
	// bbolt writes keys and values in order, directly behind the elements, and
	// zeros behind them: a wrong count shows.
	last, place := low, pageHeader+count*elementSize
	for i := range count {
		e := p[pageHeader+i*elementSize:]
		var pos, ksize, vsize uint64
		if flags == flagBranch {
			pos, ksize = uint64(ne.Uint32(e)), uint64(ne.Uint32(e[4:]))
		} else {
			pos, ksize, vsize = uint64(ne.Uint32(e[4:])), uint64(ne.Uint32(e[8:])), uint64(ne.Uint32(e[12:]))
		}
		if pageHeader+i*elementSize+pos != place || ksize == 0 || place+ksize+vsize > uint64(len(p)) {
			return fmt.Errorf("%s has a damaged element", name)
		}
		place += ksize + vsize
		key, value := e[pos:pos+ksize], e[pos+ksize:pos+ksize+vsize]
		if order := bytes.Compare(key, last); last != nil && (order < 0 || order == 0 && i > 0) || high != nil && bytes.Compare(key, high) >= 0 {
			return fmt.Errorf("%s has keys out of order", name)
		}
		last = key
		var err error
		switch {
		case flags == flagBranch:
			next := high
			if i+1 < count {
				n := p[pageHeader+(i+1)*elementSize:]
				npos, nsize := uint64(ne.Uint32(n)), uint64(ne.Uint32(n[4:]))
				if npos < elementSize || npos+nsize > uint64(len(n)) {
					return fmt.Errorf("%s has a damaged element", name)
				}
				next = n[npos : npos+nsize]
			}
			err = f.tree(ne.Uint64(e[8:]), bucket, key, next)
		case ne.Uint32(e) == flagBucket && bucket == "":
			err = f.bucket(string(key), value)
		case ne.Uint32(e) == 0 && bucket != "":
			if err = f.visit(bucket, key, value); err != nil {
				err = fmt.Errorf("%s: %w", name, err)
			}
		default:
			err = fmt.Errorf("%s has an element of unknown kind", name)
		}
		if err != nil {
			return err
		}
	}
	if len(bytes.TrimLeft(p[place:], "\x00")) > 0 {
		return fmt.Errorf("%s has more in it than it says", name)
	}
	return nil
}

// bucket is a value that holds the number of its root page, or 0 and the page
// itself when it is small.
func (f *pageFile) bucket(name string, value []byte) error {
	if !slices.ContainsFunc(schema.AllBuckets, func(b backend.Bucket) bool { return b.String() == name }) {
		return fmt.Errorf("bucket %q is none of etcd's", name)
	}
	if len(value) < bucketHeader {
		return fmt.Errorf("bucket %s has a damaged header", name)
	}
	if root := binary.NativeEndian.Uint64(value); root != 0 {
		return f.tree(root, name, nil, nil)
	}
	inline := value[bucketHeader:]
	if len(inline) < pageHeader || binary.NativeEndian.Uint16(inline[8:]) != flagLeaf {
		return fmt.Errorf("bucket %s has a damaged page", name)
	}
	return f.page(inline, "bucket "+name, name, nil, nil)
}
