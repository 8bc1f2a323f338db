package envoy

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/legation-io/legation/internal/accesslog"
	"github.com/legation-io/legation/internal/fault"
)

// Admin speaks to one Envoy's admin interface on its Unix socket.
type Admin struct {
	socket string
	client *http.Client
}

// NewAdmin returns a client; it connects when asked something.
func NewAdmin(socket string) *Admin {
	var dialer net.Dialer
	return &Admin{socket: socket, client: &http.Client{
		Timeout: 10 * time.Second,
		Transport: &http.Transport{
			DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
				return dialer.DialContext(ctx, "unix", socket)
			},
			DisableKeepAlives: true, // rare calls; an idle connection would hold a drain up
		},
	}}
}

// maxAnswer bounds what the admin interface may say, maxKept what of that is
// held in memory: who answers at a session's socket is that session's user.
const (
	maxAnswer = 64 << 20
	maxKept   = 4 << 20
)

func (a *Admin) do(ctx context.Context, method, path string, query url.Values, to io.Writer) error {
	limit := int64(maxAnswer)
	if _, kept := to.(*strings.Builder); kept {
		limit = maxKept
	}
	u := url.URL{Scheme: "http", Host: "envoy", Path: path, RawQuery: query.Encode()}
	req, err := http.NewRequestWithContext(ctx, method, u.String(), nil)
	if err != nil {
		return fmt.Errorf("ask Envoy %s: %w", path, err)
	}
	resp, err := a.client.Do(req)
	if err != nil {
		return fault.New(fault.Unavailable, "Envoy's admin socket %s does not answer: %w", a.socket, err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		text, _ := io.ReadAll(io.LimitReader(resp.Body, maxText)) // the status says enough without it
		return fault.New(fault.Unavailable, "Envoy answers %s with %s: %s", path, resp.Status, strings.TrimSpace(string(text)))
	}
	n, err := io.Copy(to, io.LimitReader(resp.Body, limit+1))
	if err != nil {
		return fmt.Errorf("read Envoy's answer to %s: %w", path, err)
	}
	if n > limit {
		return fault.New(fault.Limited, "Envoy's answer to %s is longer than %d bytes", path, limit)
	}
	return nil
}

// State is what /ready says: LIVE, PRE_INITIALIZING, INITIALIZING, DRAINING.
func (a *Admin) State(ctx context.Context) (string, error) {
	u := url.URL{Scheme: "http", Host: "envoy", Path: "/ready"}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
	if err != nil {
		return "", fmt.Errorf("ask Envoy whether it is ready: %w", err)
	}
	resp, err := a.client.Do(req)
	if err != nil {
		return "", fault.New(fault.Unavailable, "Envoy's admin socket %s does not answer: %w", a.socket, err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxText))
	if err != nil {
		return "", fmt.Errorf("read whether Envoy is ready: %w", err)
	}
	return strings.TrimSpace(string(body)), nil
}

// WaitLive waits until Envoy is LIVE, which is when it holds its listeners,
// clusters and their secrets.
func (a *Admin) WaitLive(ctx context.Context) error {
	wait := 2 * time.Millisecond
	for {
		state, err := a.State(ctx)
		if err == nil && state == "LIVE" {
			return nil
		}
		select {
		case <-ctx.Done():
			if err != nil {
				return err
			}
			return fault.New(fault.Unavailable, "Envoy is %s and not LIVE: it waits for listeners, clusters or secrets", state)
		case <-time.After(wait):
		}
		wait = min(wait*2, 50*time.Millisecond)
	}
}

// Prometheus writes Envoy's statistics in Prometheus' text format, those
// whose names match the regular expression filter (empty: all that were ever
// used).
func (a *Admin) Prometheus(ctx context.Context, filter string, to io.Writer) error {
	q := url.Values{"usedonly": {""}}
	if filter != "" {
		q.Set("filter", filter)
	}
	return a.do(ctx, http.MethodGet, "/stats/prometheus", q, to)
}

// Stats returns the counters and gauges whose names match filter, a regular
// expression.
func (a *Admin) Stats(ctx context.Context, filter string) (map[string]uint64, error) {
	if _, err := regexp.Compile(filter); err != nil {
		return nil, fault.New(fault.Invalid, "filter of Envoy's statistics: %w", err)
	}
	var b strings.Builder
	err := a.do(ctx, http.MethodGet, "/stats", url.Values{"filter": {filter}, "format": {"json"}, "histogram_buckets": {"none"}}, &b)
	if err != nil {
		return nil, err
	}
	var answer struct {
		Stats []struct {
			Name  string          `json:"name"`
			Value json.RawMessage `json:"value"`
		} `json:"stats"`
	}
	if err := json.Unmarshal([]byte(b.String()), &answer); err != nil {
		return nil, fmt.Errorf("read Envoy's statistics: %w", err)
	}
	out := make(map[string]uint64, len(answer.Stats))
	for _, s := range answer.Stats {
		var v uint64
		if s.Name != "" && json.Unmarshal(s.Value, &v) == nil { // text values are left out
			out[s.Name] = v
		}
	}
	return out, nil
}

// Listeners are the names of those that Envoy accepts on.
func (a *Admin) Listeners(ctx context.Context) ([]string, error) {
	var b strings.Builder
	if err := a.do(ctx, http.MethodGet, "/listeners", url.Values{"format": {"json"}}, &b); err != nil {
		return nil, err
	}
	var answer struct {
		Statuses []struct {
			Name string `json:"name"`
		} `json:"listener_statuses"`
	}
	if err := json.Unmarshal([]byte(b.String()), &answer); err != nil {
		return nil, fmt.Errorf("read Envoy's listeners: %w", err)
	}
	names := make([]string, len(answer.Statuses))
	for i, l := range answer.Statuses {
		names[i] = l.Name
	}
	return names, nil
}

// Served is a certificate that Envoy holds and presents.
type Served struct {
	Serial    string // as Serial normalises
	URIs      []string
	NotBefore time.Time
	NotAfter  time.Time
}

// ServedCertificates lists the leaf certificates that Envoy holds now, each
// once, by expiry: what is served, to compare with what was issued.
func (a *Admin) ServedCertificates(ctx context.Context) ([]Served, error) {
	var b strings.Builder
	if err := a.do(ctx, http.MethodGet, "/certs", nil, &b); err != nil {
		return nil, err
	}
	return parseCerts([]byte(b.String()))
}

func parseCerts(body []byte) ([]Served, error) {
	var answer struct {
		Certificates []struct {
			Chain []struct {
				Serial string `json:"serial_number"`
				Names  []struct {
					URI string `json:"uri"`
				} `json:"subject_alt_names"`
				From time.Time `json:"valid_from"`
				To   time.Time `json:"expiration_time"`
			} `json:"cert_chain"`
		} `json:"certificates"`
	}
	if err := json.Unmarshal(body, &answer); err != nil {
		return nil, fmt.Errorf("read the certificates that Envoy serves: %w", err)
	}
	var out []Served
	for _, c := range answer.Certificates {
		if len(c.Chain) == 0 {
			continue
		}
		leaf := c.Chain[0]
		s := Served{Serial: Serial(leaf.Serial), NotBefore: leaf.From, NotAfter: leaf.To}
		if slices.ContainsFunc(out, func(o Served) bool { return o.Serial == s.Serial }) {
			continue
		}
		for _, n := range leaf.Names {
			if n.URI != "" {
				s.URIs = append(s.URIs, n.URI)
			}
		}
		out = append(out, s)
	}
	slices.SortFunc(out, func(a, b Served) int { return a.NotAfter.Compare(b.NotAfter) })
	return out, nil
}

// Drain stops accepting inbound connections (listeners with traffic_direction
// INBOUND) and waits until those that are open have ended, or ctx ends: then
// the error is fault.Unavailable and says how many are left.
func (a *Admin) Drain(ctx context.Context) error {
	if err := a.do(ctx, http.MethodPost, "/drain_listeners", url.Values{"inboundonly": {""}}, io.Discard); err != nil {
		return fmt.Errorf("drain: %w", err)
	}
	const open = `^listener\.` + accesslog.StatInbound + `\.downstream_cx_active$`
	var left uint64
	wait := 5 * time.Millisecond
	for {
		stats, err := a.Stats(ctx, open)
		if err != nil && ctx.Err() == nil {
			return fmt.Errorf("drain: %w", err)
		}
		if err == nil {
			left = 0
			for _, n := range stats {
				left += n
			}
			if left == 0 {
				return nil
			}
		}
		select {
		case <-ctx.Done():
			return fault.New(fault.Unavailable, "drain: %d inbound connections are still open", left)
		case <-time.After(wait):
		}
		wait = min(wait*2, 100*time.Millisecond)
	}
}
