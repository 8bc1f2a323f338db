// Command load asks the model service many times and says how that went. It
// stops by itself, after -requests or -for, whichever comes first.
package main

import (
	"bytes"
	"context"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/legation-io/legation/sdk/chaincheck"
	"github.com/legation-io/legation/sdk/mtls"
	"github.com/legation-io/legation/sdk/workloadapi"

	_ "github.com/legation-io/legation/sdk/aes256gcm"
)

func main() {
	url := flag.String("url", "https://127.0.0.1:8443/v1/models/sentiment:predict", "what is asked")
	server := flag.String("server", "", "SPIFFE ID that must answer")
	workers := flag.Int("workers", 8, "requests at once")
	requests := flag.Int64("requests", 20_000, "requests in all")
	most := flag.Duration("for", 2*time.Minute, "how long at most")
	noReuse := flag.Bool("new-connections", false, "a handshake for every request")
	prefer := flag.Bool("prefer", false, "the trust domain publishes no revocation lists")
	flag.Parse()
	ctx, cancel := context.WithTimeout(context.Background(), *most)
	defer cancel()
	if err := run(ctx, *url, *server, *workers, *requests, *noReuse, *prefer); err != nil {
		fmt.Fprintln(os.Stderr, "load:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, url, server string, workers int, requests int64, noReuse, prefer bool) error {
	id, err := spiffeid.FromString(server)
	if err != nil {
		return fmt.Errorf("-server: %w", err)
	}
	source, err := workloadapi.Open(ctx, workloadapi.Config{Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		return err
	}
	defer source.Close()
	c := mtls.ClientConfig{Source: source, Authorize: mtls.AuthorizeID(id), Profile: mtls.Strict}
	if prefer {
		c.Revocation = chaincheck.Prefer
	}
	dialer, err := mtls.NewDialer(c)
	if err != nil {
		return err
	}
	defer dialer.Close()
	transport := dialer.Transport()
	transport.MaxIdleConnsPerHost = workers
	transport.DisableKeepAlives = noReuse
	client := &http.Client{Transport: transport}

	var next, failed atomic.Int64
	var firstError atomic.Pointer[error]
	took := make([][]time.Duration, workers)
	begin := time.Now()
	var wg sync.WaitGroup
	for w := range workers {
		wg.Go(func() {
			for next.Add(1) <= requests && ctx.Err() == nil {
				start := time.Now()
				if err := ask(ctx, client, url); err != nil {
					failed.Add(1)
					firstError.CompareAndSwap(nil, &err)
					continue
				}
				took[w] = append(took[w], time.Since(start))
			}
		})
	}
	wg.Wait()
	all := slices.Concat(took...)
	slices.Sort(all)
	if len(all) == 0 {
		return fmt.Errorf("no request was answered: %w", *firstError.Load())
	}
	seconds := time.Since(begin).Seconds()
	fmt.Printf("%d answered, %d failed in %.1f s: %.0f/s, p50 %s, p99 %s\n", len(all), failed.Load(), seconds, float64(len(all))/seconds,
		all[len(all)/2].Round(time.Microsecond), all[len(all)*99/100].Round(time.Microsecond))
	if e := firstError.Load(); e != nil {
		return *e
	}
	return nil
}

func ask(ctx context.Context, client *http.Client, url string) error {
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, url, bytes.NewReader([]byte(`{"text": "works great and fast"}`)))
	if err != nil {
		return err
	}
	answer, err := client.Do(r)
	if err != nil {
		return err
	}
	defer answer.Body.Close()
	body, err := io.ReadAll(io.LimitReader(answer.Body, 1<<20))
	if err == nil && answer.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s", answer.Status, body)
	}
	return err
}
