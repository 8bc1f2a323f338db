package main

import (
	"encoding/binary"
	"errors"
	"io"
	"net"
	"sync"
	"time"
)

// fan is the floor of a push: the same bytes written to n plain sockets and
// read by n readers of this process, nothing else.
type fan struct {
	listener net.Listener
	writers  []net.Conn
	readers  []net.Conn
	arrived  chan time.Time
	wg       sync.WaitGroup
}

func newFan(network, address string, n int) (*fan, error) {
	l, err := net.Listen(network, address)
	if err != nil {
		return nil, err
	}
	f := &fan{listener: l, arrived: make(chan time.Time, n)}
	for range n {
		w, err := net.Dial(network, l.Addr().String())
		if err != nil {
			f.close()
			return nil, err
		}
		f.writers = append(f.writers, w)
		rd, err := l.Accept()
		if err != nil {
			f.close()
			return nil, err
		}
		f.readers = append(f.readers, rd)
		f.wg.Go(func() { f.read(rd) })
	}
	return f, nil
}

// read takes messages: a length, then as many bytes.
func (f *fan) read(c net.Conn) {
	var head [4]byte
	buf := make([]byte, 1<<20)
	for {
		if _, err := io.ReadFull(c, head[:]); err != nil {
			return
		}
		if _, err := io.ReadFull(c, buf[:binary.BigEndian.Uint32(head[:])]); err != nil {
			return
		}
		f.arrived <- time.Now()
	}
}

// send writes n bytes to every socket and returns when the last reader had them.
func (f *fan) send(n int) (time.Duration, error) {
	if n < 0 || n > 1<<20 {
		return 0, errors.New("more than a fan carries")
	}
	message := make([]byte, 4+n)
	binary.BigEndian.PutUint32(message, uint32(n))
	start := time.Now()
	for _, w := range f.writers {
		if _, err := w.Write(message); err != nil {
			return 0, err
		}
	}
	var last time.Time
	deadline := time.After(10 * time.Second)
	for range f.writers {
		select {
		case at := <-f.arrived:
			if at.After(last) {
				last = at
			}
		case <-deadline:
			return 0, errors.New("not all sockets read within 10 s")
		}
	}
	return last.Sub(start), nil
}

func (f *fan) close() {
	f.listener.Close()
	for _, c := range append(f.writers, f.readers...) {
		c.Close()
	}
	f.wg.Wait()
}
