package agent

import (
	"context"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	localv1 "github.com/legation-io/legation/api/local/v1"
	nodev1 "github.com/legation-io/legation/api/node/v1"
	"github.com/legation-io/legation/internal/agent/sds"
	"github.com/legation-io/legation/internal/agent/session"
	"github.com/legation-io/legation/internal/agent/svid"
	"github.com/legation-io/legation/internal/agent/upstream"
	"github.com/legation-io/legation/internal/agent/workloadapi"
	attestnode "github.com/legation-io/legation/internal/attest/node"
	"github.com/legation-io/legation/internal/attest/workload"
	"github.com/legation-io/legation/internal/callers"
	"github.com/legation-io/legation/internal/clock"
	"github.com/legation-io/legation/internal/distribute"
	"github.com/legation-io/legation/internal/durable"
	"github.com/legation-io/legation/internal/fault"
	"github.com/legation-io/legation/internal/sealed"
	"github.com/legation-io/legation/internal/telemetry"
	"github.com/legation-io/legation/internal/unixsocket"
	"github.com/legation-io/legation/internal/version"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
)

// Run runs an agent until ctx ends or a part of it fails.
func Run(ctx context.Context, cfg Config, log *slog.Logger) error {
	if err := cfg.Validate(); err != nil {
		return err
	}
	a, err := newAgent(cfg, log)
	if err != nil {
		return err
	}
	return a.run(ctx)
}

// agent is an assembled agent.
type agent struct {
	cfg      Config
	log      *slog.Logger
	td       spiffeid.TrustDomain
	started  time.Time
	metrics  *prometheus.Registry
	link     *upstream.Link
	manager  *svid.Manager
	attestor *workload.Attestor
	engine   *distribute.Engine
	sessions *session.Server
	sds      *sds.Server
	api      *workloadapi.Server
	states   *deliveries
	hosts    *callersOfSDS
}
