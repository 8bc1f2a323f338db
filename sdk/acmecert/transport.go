package acmecert

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/mholt/acmez/v3/acme"
)

const (
	maxAnswer       = 1 << 20
	maxRequests     = 3000            // of one order, polling included
	maxNonces       = 400             // refused in a row, of one request
	directoryLife   = 12 * time.Hour  // then it is asked for again
	longestPause    = 5 * time.Minute // of the whole Manager; the name itself waits as long as it was told
	longestWait     = 7 * 24 * time.Hour
	unspecifiedWait = time.Minute
)

// RateLimited is in the error of an order that the CA put off (RFC 8555 6.6).
type RateLimited struct {
	// Until is when the CA may be asked again.
	Until time.Time
	// Detail is what the CA said, shortened.
	Detail string
}

// Error implements error.
func (e *RateLimited) Error() string {
	return fmt.Sprintf("the CA limits the rate, nothing is sent before %s: %s", e.Until.UTC().Format(time.RFC3339), e.Detail)
}

// order is what the transport notes about the order that a request belongs to.
type order struct {
	mu       sync.Mutex
	requests int
	limited  *RateLimited
}

type orderKey struct{}

// forOrders begins the fragment of the directory that orders are made by.
const forOrders = "orders-"

// transport is the one way to the CA: https alone, no redirects, answers
// bounded, refused nonces signed anew, rate limits kept.
type transport struct {
	base      http.RoundTripper
	directory string
	now       func() time.Time
	metrics   *metrics

	mu      sync.Mutex
	dir     []byte // the directory as acmez gets it
	orders  []byte // without ARI, which acmez would wait for within an order
	parsed  acme.Directory
	fetched time.Time
	key     *ecdsa.PrivateKey
	limited *RateLimited
}

func newTransport(c *Config, m *metrics) *transport {
	base := http.DefaultTransport.(*http.Transport).Clone()
	base.TLSClientConfig = &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: c.RootCAs}
	base.MaxIdleConnsPerHost = c.Concurrency
	base.ResponseHeaderTimeout = c.HTTPTimeout
	base.TLSHandshakeTimeout = c.HTTPTimeout
	base.MaxResponseHeaderBytes = 64 << 10
	return &transport{base: base, directory: c.Directory, now: c.Now, metrics: m}
}

// client is what acmez sends by.
func (t *transport) client(timeout time.Duration) *http.Client {
	return &http.Client{Transport: t, Timeout: timeout, CheckRedirect: func(r *http.Request, _ []*http.Request) error {
		return fmt.Errorf("the CA redirects to %s: redirects are not followed", clean(r.URL.Redacted()))
	}}
}

func (t *transport) close() { t.base.(*http.Transport).CloseIdleConnections() }

func (t *transport) sign(key *ecdsa.PrivateKey) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.key = key
}

// RoundTrip implements http.RoundTripper.
func (t *transport) RoundTrip(r *http.Request) (*http.Response, error) {
	if err := httpsURL(r.URL.String()); err != nil {
		return nil, fmt.Errorf("the CA gave a URL that is not used: %w", err)
	}
	if t.isDirectory(r) {
		// acmez holds a lock of the whole process while it asks, so the answer
		// is here already.
		t.mu.Lock()
		defer t.mu.Unlock()
		if t.dir == nil {
			return nil, errors.New("the directory was not fetched")
		}
		dir := t.dir
		if strings.HasPrefix(r.URL.Fragment, forOrders) {
			dir = t.orders
		}
		return answer(r, http.StatusOK, http.Header{"Content-Type": {"application/json"}}, dir), nil
	}
	if err := t.may(r.Context()); err != nil {
		return nil, err
	}
	body, err := drain(r)
	if err != nil {
		return nil, err
	}
	for attempt := 1; ; attempt++ {
		resp, content, err := t.send(r, body)
		if err != nil {
			t.metrics.requests.WithLabelValues("error").Inc()
			return nil, err
		}
		problem := problemOf(resp, content)
		nonce := resp.Header.Get("Replay-Nonce")
		if problem.Type == acme.ProblemTypeBadNonce && nonce != "" && attempt < maxNonces && body != nil {
			t.metrics.requests.WithLabelValues("bad_nonce").Inc()
			if again, ok := t.resign(body, nonce); ok {
				if err := pause(r.Context(), attempt); err != nil {
					return nil, err
				}
				body = again
				continue
			}
		}
		t.keepLimits(r.Context(), resp, problem)
		resp.Header.Del("Link") // "up" and "alternate" lead acmez on without a bound
		return answer(r, resp.StatusCode, resp.Header, content), nil
	}
}

// pause before a nonce is tried again: none for what an honest server does
// now and then.
func pause(ctx context.Context, attempt int) error {
	if attempt < 4 {
		return ctx.Err()
	}
	timer := time.NewTimer(min(time.Duration(attempt)*time.Millisecond, 50*time.Millisecond))
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func (t *transport) isDirectory(r *http.Request) bool {
	u := *r.URL
	u.Fragment, u.RawFragment = "", ""
	return r.Method == http.MethodGet && u.String() == t.directory
}

func drain(r *http.Request) ([]byte, error) {
	if r.Body == nil || r.Body == http.NoBody {
		return nil, nil
	}
	defer r.Body.Close()
	return io.ReadAll(r.Body)
}

// send makes one request and reads its answer whole, if that is bounded.
func (t *transport) send(r *http.Request, body []byte) (*http.Response, []byte, error) {
	sent := r.Clone(r.Context())
	if body != nil {
		sent.Body, sent.ContentLength = io.NopCloser(bytes.NewReader(body)), int64(len(body))
	}
	sent.GetBody = nil
	resp, err := t.base.RoundTrip(sent)
	if err != nil {
		return nil, nil, err
	}
	defer resp.Body.Close()
	content, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer+1))
	if err != nil {
		return nil, nil, fmt.Errorf("read the answer of %s: %w", r.URL.Host, err)
	}
	limit := maxAnswer
	if strings.Contains(resp.Header.Get("Content-Type"), "pem") {
		limit = maxChainBytes // decoding PEM takes quadratic time on what is none
	}
	if len(content) > limit {
		return nil, nil, fmt.Errorf("the answer of %s is longer than %d bytes and refused", r.URL.Host, limit)
	}
	if resp.StatusCode < 400 {
		t.metrics.requests.WithLabelValues("ok").Inc()
		if wait, ok := retryAfter(resp.Header, t.now()); ok && wait <= 0 {
			resp.Header.Del("Retry-After") // else acmez asks without any pause
		}
	}
	return resp, content, nil
}

func answer(r *http.Request, status int, header http.Header, content []byte) *http.Response {
	return &http.Response{
		Status: http.StatusText(status), StatusCode: status, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
		Header: header, Request: r, Body: io.NopCloser(bytes.NewReader(content)), ContentLength: int64(len(content)),
	}
}

func problemOf(resp *http.Response, content []byte) acme.Problem {
	var p acme.Problem
	if resp.StatusCode >= 400 && strings.HasPrefix(resp.Header.Get("Content-Type"), "application/problem+json") {
		_ = json.Unmarshal(content, &p) // what is no problem document says nothing
	}
	return p
}

// may refuses a request while the CA wants none, and those of an order
// without end.
func (t *transport) may(ctx context.Context) error {
	if o, ok := ctx.Value(orderKey{}).(*order); ok {
		o.mu.Lock()
		defer o.mu.Unlock()
		if o.limited != nil {
			return o.limited
		}
		if o.requests++; o.requests > maxRequests {
			return fmt.Errorf("the order needed more than %d requests and was given up", maxRequests)
		}
	}
	return t.paused()
}

// paused returns the rate limit that is on now.
func (t *transport) paused() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.limited != nil && t.now().Before(t.limited.Until) {
		return t.limited
	}
	t.limited = nil
	return nil
}

func (t *transport) keepLimits(ctx context.Context, resp *http.Response, p acme.Problem) {
	wait, told := retryAfter(resp.Header, t.now())
	limited := resp.StatusCode == http.StatusTooManyRequests || p.Type == acme.ProblemTypeRateLimited ||
		resp.StatusCode == http.StatusServiceUnavailable && told
	if !limited {
		if resp.StatusCode >= 400 {
			t.metrics.requests.WithLabelValues("error").Inc()
		}
		return
	}
	t.metrics.requests.WithLabelValues("limited").Inc()
	if !told || wait <= 0 {
		wait = unspecifiedWait
	}
	wait = min(wait, longestWait)
	detail := clean(p.Detail)
	if detail == "" {
		detail = "HTTP " + strconv.Itoa(resp.StatusCode)
	}
	if o, ok := ctx.Value(orderKey{}).(*order); ok {
		o.mu.Lock()
		o.limited = &RateLimited{Until: t.now().Add(wait), Detail: detail}
		o.mu.Unlock()
	}
	t.mu.Lock()
	t.limited = &RateLimited{Until: t.now().Add(min(wait, longestPause)), Detail: detail}
	t.mu.Unlock()
}

// retryAfter reads the header of RFC 9110 10.2.3; false without one.
func retryAfter(h http.Header, now time.Time) (time.Duration, bool) {
	v := h.Get("Retry-After")
	if v == "" {
		return 0, false
	}
	if seconds, err := strconv.Atoi(v); err == nil {
		return time.Duration(min(seconds, int(longestWait/time.Second))) * time.Second, true
	}
	if at, err := http.ParseTime(v); err == nil {
		return at.Sub(now), true
	}
	return 0, true
}
