package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"time"

	"github.com/legation-io/legation/internal/commandline"
	"github.com/legation-io/legation/internal/fault"
	"github.com/spiffe/go-spiffe/v2/logger"
	"github.com/spiffe/go-spiffe/v2/workloadapi"
)

const (
	// identityWithin bounds the wait for an operator's SVID: the agent holds a
	// caller back for some seconds, should an entry be on its way.
	identityWithin = 10 * time.Second
	// quietFor is how long nothing is said of that wait.
	quietFor = time.Second
)

// checkAddress refuses what is no HOST:PORT before anything is waited for.
func checkAddress(target string) error {
	if _, _, err := net.SplitHostPort(target); err == nil && !strings.Contains(target, "/") {
		return nil
	}
	return fault.New(fault.Invalid, "%s is no HOST:PORT; for a socket write unix://%s", target, strings.TrimPrefix(target, "unix:"))
}

// operatorSource waits for the caller's own SVID until ctx ends, and says on
// talk what it waits for and why it has to.
func operatorSource(ctx context.Context, talk io.Writer) (*workloadapi.X509Source, error) {
	socket := os.Getenv("SPIFFE_ENDPOINT_SOCKET")
	reasons := &refusals{Logger: logger.Null, news: make(chan error, 1)}
	type answer struct {
		source *workloadapi.X509Source
		err    error
	}
	answered := make(chan answer, 1)
	go func() {
		source, err := workloadapi.NewX509Source(ctx, workloadapi.WithClientOptions(workloadapi.WithLogger(reasons)))
		answered <- answer{source, err}
	}()
	quiet := time.NewTimer(quietFor)
	defer quiet.Stop()
	var reason error
	for {
		select {
		case a := <-answered:
			if a.err == nil {
				return a.source, nil
			}
			select {
			case reason = <-reasons.news:
			default:
			}
			switch waited := ctx.Err() != nil; {
			case !waited:
				reason = a.err
			case reason == nil:
				reason = errors.New("nobody answers")
			}
			return nil, fault.New(fault.Unavailable, "get the operator's SVID from %s: %s\ntry: declare a WorkloadIdentity for this user (legation why --selector unix:uid:%d says what is near), or use unix://PATH on the server's machine", socket, commandline.Plain(reason), os.Getuid())
		case err := <-reasons.news:
			if reason == nil || reason.Error() != err.Error() {
				fmt.Fprintf(talk, "no SVID at %s yet: %s\n", socket, commandline.Plain(err))
			}
			reason = err
		case <-quiet.C:
			if reason == nil {
				fmt.Fprintf(talk, "waiting for an SVID for this user at %s\n", socket)
			}
		}
	}
}

// refusals keeps the newest error that a Workload API client came across.
type refusals struct {
	logger.Logger
	news chan error
}

// Errorf implements logger.Logger.
func (r *refusals) Errorf(_ string, args ...any) {
	for _, a := range args {
		err, ok := a.(error)
		if !ok || errors.Is(err, context.Canceled) {
			continue
		}
		select {
		case <-r.news:
		default:
		}
		r.news <- err
	}
}
