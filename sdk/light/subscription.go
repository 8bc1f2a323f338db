package light

import (
	"context"
	"errors"
	"net"
	"time"

	"github.com/legation-io/legation/sdk/internal/holder"
)

// subscription is one connection with its calls.
type subscription struct {
	c    *Config
	nc   net.Conn
	h2   *conn
	stop func() bool

	main    *stream
	sds     *secrets    // nil with the Workload API
	answers int         // good, bad, or not whole
	weighed func(Sizes) // told of each good answer before it is taken
	wire    int         // bytes of SDS responses since the last answer

	revocations *stream   // nil while there is no such call
	reopen      time.Time // when to try again; zero: not
	retry       holder.Retry
}

// open connects and asks, in one write. The end of ctx ends the connection.
func open(ctx context.Context, c *Config, weighed func(Sizes)) (*subscription, error) {
	network, address, err := target(c.Addr)
	if err != nil {
		return nil, err
	}
	nc, err := (&net.Dialer{Timeout: c.Timeout}).DialContext(ctx, network, address)
	if err != nil {
		return nil, err
	}
	h2, err := newConn(nc, c.MaxMessage)
	if err != nil {
		nc.Close()
		return nil, err
	}
	s := &subscription{c: c, nc: nc, h2: h2, weighed: weighed, retry: holder.Retry{Backoff: c.Backoff}}
	s.stop = context.AfterFunc(ctx, func() { nc.Close() })
	if err := s.ask(); err != nil {
		s.close()
		return nil, err
	}
	return s, nil
}

func (s *subscription) ask() (err error) {
	if s.c.SDS == nil {
		s.main, err = s.h2.call(pathX509, nil, false)
	} else {
		s.sds = &secrets{sds: *s.c.SDS}
		s.main, err = s.h2.call(pathSecrets, s.sds.sds.request("", ""), true)
	}
	if err == nil && !s.c.NoRevocations {
		s.revocations, err = s.h2.call(pathRevocations, nil, false)
	}
	if err != nil {
		return err
	}
	return s.h2.flush()
}

func (s *subscription) close() {
	s.stop()
	s.nc.Close()
	s.h2.close()
	if s.sds != nil {
		s.sds.close()
	}
}

// step takes one event in. os.ErrDeadlineExceeded says that none came before
// the read deadline; any other error ends the subscription.
func (s *subscription) step(h *holder.Holder) error {
	if !s.reopen.IsZero() && !time.Now().Before(s.reopen) {
		s.reopen = time.Time{}
		var err error
		if s.revocations, err = s.h2.call(pathRevocations, nil, false); err != nil {
			return err
		}
	}
	e, err := s.h2.next()
	if err != nil {
		return err
	}
	var message []byte
	if e.message != nil {
		defer e.message.Close()
		message = e.message.Bytes()
	}
	switch {
	case e.stream == s.main && e.err != nil:
		return e.err
	case e.stream == s.main:
		return s.identity(h, message)
	case e.stream == s.revocations && e.err != nil:
		s.revocationsEnded(h, e.err)
	case e.stream == s.revocations:
		s.retry.Reset()
		all, err := parseRevocations(message)
		if err != nil {
			h.Dropped("revocations", err)
			return nil
		}
		h.Denied(all)
	}
	return nil
}

// identity takes an answer in, or keeps the last.
func (s *subscription) identity(h *holder.Holder, message []byte) error {
	s.answers++
	var answer *holder.Answer
	var err error
	var sizes Sizes
	if s.sds == nil {
		answer, sizes, err = parseX509(message)
	} else if answer, sizes, err = s.secrets(message); err == nil && answer == nil {
		return nil // not whole yet
	}
	if err != nil {
		h.Dropped("x509", err)
		h.Became(holder.Malformed, err)
		return nil
	}
	s.weighed(sizes)
	h.Updated(answer)
	return nil
}

// secrets takes an SDS response in and acknowledges it; the answer is nil
// while not all is there.
func (s *subscription) secrets(message []byte) (*holder.Answer, Sizes, error) {
	s.wire += len(message)
	version, nonce, err := s.sds.response(message)
	if err != nil {
		return nil, Sizes{}, err
	}
	if err := s.h2.send(s.main, s.sds.sds.request(version, nonce), true); err != nil {
		return nil, Sizes{}, err
	}
	if !s.sds.whole() {
		return nil, Sizes{}, nil
	}
	sizes := Sizes{Wire: s.wire}
	s.wire = 0
	answer, err := s.sds.answer(&sizes)
	return answer, sizes, err
}

func (s *subscription) revocationsEnded(h *holder.Holder, err error) {
	s.revocations = nil
	var status *StatusError
	if errors.As(err, &status) && status.Code == CodeUnimplemented {
		h.NotOffered() // another agent may answer on the next connection
		return
	}
	s.reopen = time.Now().Add(s.retry.Next())
}
