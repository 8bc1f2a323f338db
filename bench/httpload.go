package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync"
	"time"
)

// connections of a load, all kept alive.
const connections = 16

// backend answers 1 KiB; with a next it asks there first, as often as the
// header hops says: a chain of services.
type backend struct {
	address string
	server  *http.Server
	serving sync.WaitGroup
	body    []byte
}

func startBackend() (*backend, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	b := &backend{address: l.Addr().String(), body: bytes.Repeat([]byte("x"), 1024)}
	b.server = &http.Server{Handler: b, ReadHeaderTimeout: 10 * time.Second}
	b.serving.Go(func() { _ = b.server.Serve(l) })
	return b, nil
}

// The path of a request to a chain: /<hops left>/<where to go on>.
func chainPath(hops int, next string) string { return fmt.Sprintf("/%d/%s", hops, next) }

var onward = &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{MaxIdleConnsPerHost: connections}}

func (b *backend) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	var hops int
	var next string
	if n, _ := fmt.Sscanf(req.URL.Path, "/%d/%s", &hops, &next); n == 2 && hops > 0 {
		if err := get(req.Context(), onward, next, chainPath(hops-1, next)); err != nil {
			http.Error(w, err.Error(), http.StatusBadGateway)
			return
		}
	}
	_, _ = w.Write(b.body)
}

func (b *backend) close() {
	_ = b.server.Close()
	b.serving.Wait()
	onward.CloseIdleConnections()
}

func get(ctx context.Context, client *http.Client, address, path string) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+address+path, nil)
	if err != nil {
		return err
	}
	res, err := client.Do(req)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	n, err := io.Copy(io.Discard, res.Body)
	if err == nil && (res.StatusCode != http.StatusOK || n != 1024) {
		err = fmt.Errorf("status %d with %d bytes from %s", res.StatusCode, n, address)
	}
	return err
}

// caller keeps connections to one address.
type caller struct {
	address, path string
	clients       []*http.Client // one connection each
}

func newCaller(address, path string, n int) *caller {
	c := &caller{address: address, path: path}
	for range n {
		c.clients = append(c.clients, &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{MaxConnsPerHost: 1}})
	}
	return c
}

func (c *caller) close() {
	for _, client := range c.clients {
		client.CloseIdleConnections()
	}
}

// load sends that many requests a second for a while, spread over the
// connections, and returns each one's time from send to last byte.
func (c *caller) load(ctx context.Context, perSecond int, d time.Duration) (times, error) {
	var mu sync.Mutex
	var all times
	var errs error
	var wg sync.WaitGroup
	start, n := time.Now(), len(c.clients)
	step := time.Second * time.Duration(n) / time.Duration(perSecond)
	for i, client := range c.clients {
		wg.Go(func() {
			var mine times
			next := start.Add(step * time.Duration(i) / time.Duration(n))
			for ctx.Err() == nil {
				time.Sleep(time.Until(next))
				sent := time.Now()
				if sent.Sub(start) >= d {
					break
				}
				if err := get(ctx, client, c.address, c.path); err != nil {
					mu.Lock()
					errs = errors.Join(errs, err)
					mu.Unlock()
					return
				}
				mine = append(mine, time.Since(sent))
				next = next.Add(step)
			}
			mu.Lock()
			all = append(all, mine...)
			mu.Unlock()
		})
	}
	wg.Wait()
	return all, errors.Join(errs, ctx.Err())
}
