package upstream

import (
	"context"
	"time"

	nodev1 "github.com/legation-io/legation/api/node/v1"
	"github.com/legation-io/legation/internal/fault"
)

var (
	_ Signer = (*Link)(nil)
	_ Views  = (*Link)(nil)
)

// linkWait is how long a call waits for a link that is just coming up.
const linkWait = 2 * time.Second

// call makes one request over the current session. A session that ended
// under it is tried once more: signing again is harmless.
func (l *Link) call(ctx context.Context, what string, f func(context.Context, nodev1.NodeClient) error) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	var last *session
	for {
		s, err := l.current(ctx, what, last)
		if err != nil {
			return err
		}
		s.calls.Add(1)
		err = f(ctx, s.client)
		s.calls.Add(-1)
		if err == nil {
			return nil
		}
		if ctx.Err() == nil && last == nil && fault.Is(err, fault.Unavailable) {
			last = s
			continue
		}
		return fault.New(fault.KindOf(err), "%s: %s%w", what, plain(err), hidden{err})
	}
}

// hidden keeps a cause in the chain without repeating its text.
type hidden struct{ error }

func (hidden) Error() string   { return "" }
func (h hidden) Unwrap() error { return h.error }

// current is the session to use, another than last.
func (l *Link) current(ctx context.Context, what string, last *session) (*session, error) {
	timer := time.NewTimer(linkWait)
	defer timer.Stop()
	for {
		s, changed := l.session.Load()
		if s != nil && s != last {
			return s, nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil, fault.New(fault.Unavailable, "%s: %w", what, ctx.Err())
		case <-timer.C:
			why := l.view.Get().LastError
			if why == "" {
				why = "not connected yet"
			}
			return nil, fault.New(fault.Unavailable, "%s: no replica of the control plane answers (%s)", what, why)
		}
	}
}

// SignX509 passes on a batch of certificate requests.
func (l *Link) SignX509(ctx context.Context, items []*nodev1.X509Item) ([]*nodev1.X509Result, error) {
	var results []*nodev1.X509Result
	err := l.call(ctx, "sign certificates", func(ctx context.Context, c nodev1.NodeClient) error {
		res, err := c.SignX509(ctx, &nodev1.SignX509Request{TrustDomain: l.p.TrustDomain.Name(), Items: items})
		if err == nil && len(res.GetResults()) != len(items) {
			err = fault.New(fault.Invalid, "the control plane answered %d requests with %d results", len(items), len(res.GetResults()))
		}
		results = res.GetResults()
		return err
	})
	if err != nil {
		return nil, err
	}
	return results, nil
}

// SignJWT passes on a request for a JWT-SVID.
func (l *Link) SignJWT(ctx context.Context, req *nodev1.SignJWTRequest) (res *nodev1.SignJWTResponse, err error) {
	if req.GetTrustDomain() == "" {
		req.TrustDomain = l.p.TrustDomain.Name()
	}
	err = l.call(ctx, "sign a JWT-SVID", func(ctx context.Context, c nodev1.NodeClient) error {
		res, err = c.SignJWT(ctx, req)
		return err
	})
	return res, err
}

// Explain asks which entries come near.
func (l *Link) Explain(ctx context.Context, req *nodev1.ExplainRequest) (res *nodev1.ExplainResponse, err error) {
	if req.GetTrustDomain() == "" {
		req.TrustDomain = l.p.TrustDomain.Name()
	}
	err = l.call(ctx, "explain", func(ctx context.Context, c nodev1.NodeClient) error {
		res, err = c.Explain(ctx, req)
		return err
	})
	return res, err
}
