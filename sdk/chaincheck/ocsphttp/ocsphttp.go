// Package ocsphttp answers "how is an OCSP responder asked": by HTTP (RFC
// 6960 appendix A), at allowed addresses only, without redirects, proxies and
// cookies, in bounded time and size. What the answer is worth is decided by
// sdk/chaincheck.
//
//	fetcher, err := ocsphttp.New(ocsphttp.Config{})
//	ocsp := chaincheck.NewOCSP(chaincheck.OCSPConfig{Fetcher: fetcher})
package ocsphttp

import (
	"bytes"
	"context"
	"encoding/base64"
	"fmt"
	"io"
	"mime"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/legation-io/legation/sdk/chaincheck"
	"github.com/legation-io/legation/sdk/egress"
)

// maxResponse is what is read of an answer, in bytes.
const maxResponse = 64 << 10

// Config is how responders are reached. The zero value reaches those of the
// public Internet at port 80.
type Config struct {
	// Egress says which addresses may be reached. Its Ports, when nil, are 80
	// alone: responders answer over plain HTTP.
	Egress egress.Config
	// Timeout bounds one exchange; zero is 5 s.
	Timeout time.Duration
}

// Fetcher implements chaincheck.Fetcher.
type Fetcher struct {
	client *http.Client
}

// New returns a Fetcher. It fails on an Egress that allows nothing.
func New(c Config) (*Fetcher, error) {
	if c.Egress.Ports == nil {
		c.Egress.Ports = []uint16{80}
	}
	if c.Timeout <= 0 {
		c.Timeout = 5 * time.Second
	}
	guard, err := egress.New(c.Egress)
	if err != nil {
		return nil, fmt.Errorf("OCSP fetcher: %w", err)
	}
	return &Fetcher{guard.Client(c.Timeout)}, nil
}

// Fetch implements chaincheck.Fetcher. A question without a nonce whose
// encoding has at most 255 bytes is a GET, which caches understand (RFC 5019
// 5); others are a POST.
func (f *Fetcher) Fetch(ctx context.Context, r chaincheck.OCSPRequest) ([]byte, error) {
	request, err := f.request(ctx, r)
	if err != nil {
		return nil, err
	}
	response, err := f.client.Do(request)
	if err != nil {
		return nil, err
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("the responder answered HTTP %d", response.StatusCode)
	}
	kind, _, err := mime.ParseMediaType(response.Header.Get("Content-Type"))
	if err != nil || kind != "application/ocsp-response" {
		return nil, fmt.Errorf("the responder answered %.64q instead of application/ocsp-response", response.Header.Get("Content-Type"))
	}
	body, err := io.ReadAll(io.LimitReader(response.Body, maxResponse+1))
	if err != nil {
		return nil, fmt.Errorf("read the responder's answer: %w", err)
	}
	if len(body) > maxResponse {
		return nil, fmt.Errorf("the responder's answer has more than %d bytes", maxResponse)
	}
	return body, nil
}

func (f *Fetcher) request(ctx context.Context, r chaincheck.OCSPRequest) (*http.Request, error) {
	u, err := url.Parse(r.URL)
	if err != nil || u.Scheme != "http" || u.Host == "" || u.User != nil || u.Fragment != "" {
		return nil, fmt.Errorf("%.256q is not a responder's address: it takes http://host/path", r.URL)
	}
	if !r.Nonce {
		if encoded := base64.StdEncoding.EncodeToString(r.DER); len(encoded) <= 255 && u.RawQuery == "" {
			escaped := strings.NewReplacer("/", "%2F", "+", "%2B", "=", "%3D").Replace(encoded)
			return http.NewRequestWithContext(ctx, http.MethodGet, strings.TrimSuffix(r.URL, "/")+"/"+escaped, nil)
		}
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, r.URL, bytes.NewReader(r.DER))
	if err != nil {
		return nil, err
	}
	request.Header.Set("Content-Type", "application/ocsp-request")
	return request, nil
}
