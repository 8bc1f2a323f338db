package acmecert

import (
	"context"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"

	"github.com/mholt/acmez/v3/acme"
)

// load fetches the directory (RFC 8555 7.1.1) unless it is known, and checks
// every URL in it.
func (t *transport) load(ctx context.Context, client *http.Client) (acme.Directory, error) {
	t.mu.Lock()
	known, dir := t.dir != nil && t.now().Sub(t.fetched) < directoryLife, t.parsed
	t.mu.Unlock()
	if known {
		return dir, nil
	}
	if err := t.may(ctx); err != nil {
		return acme.Directory{}, err
	}
	ctx, cancel := context.WithTimeout(ctx, client.Timeout)
	defer cancel()
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, t.directory, nil)
	if err != nil {
		return acme.Directory{}, err
	}
	r.Header.Set("User-Agent", "legation-acmecert")
	resp, content, err := t.send(r, nil)
	if err != nil {
		t.metrics.requests.WithLabelValues("error").Inc()
		hint := ""
		if unknown := (x509.UnknownAuthorityError{}); errors.As(err, &unknown) {
			hint = "; for a private CA set RootCAs"
		}
		return acme.Directory{}, fmt.Errorf("fetch the directory %s: %w%s", t.directory, err, hint)
	}
	if resp.StatusCode != http.StatusOK {
		t.keepLimits(ctx, resp, problemOf(resp, content))
		if err := t.paused(); err != nil {
			return acme.Directory{}, err
		}
		return acme.Directory{}, fmt.Errorf("fetch the directory %s: the server answered %d %s", t.directory, resp.StatusCode, clean(string(content)))
	}
	dir, err = parseDirectory(content)
	if err != nil {
		return acme.Directory{}, fmt.Errorf("the directory %s: %w", t.directory, err)
	}
	whole, err := json.Marshal(dir)
	if err != nil {
		return acme.Directory{}, err
	}
	orders := dir
	orders.RenewalInfo = ""
	part, err := json.Marshal(orders)
	if err != nil {
		return acme.Directory{}, err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.dir, t.orders, t.parsed, t.fetched = whole, part, dir, t.now()
	return dir, nil
}

func parseDirectory(content []byte) (acme.Directory, error) {
	var dir acme.Directory
	if err := json.Unmarshal(content, &dir); err != nil {
		return dir, fmt.Errorf("is not a JSON directory (RFC 8555 7.1.1): %w", err)
	}
	for name, u := range map[string]string{"newNonce": dir.NewNonce, "newAccount": dir.NewAccount, "newOrder": dir.NewOrder, "renewalInfo": dir.RenewalInfo} {
		if u == "" && name == "renewalInfo" {
			continue
		}
		if u == "" {
			return dir, fmt.Errorf("has no %s: is this an ACME server?", name)
		}
		if err := httpsURL(u); err != nil {
			return dir, fmt.Errorf("%s: %w", name, err)
		}
	}
	return dir, nil
}
