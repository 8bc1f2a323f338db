package etcd

import (
	"context"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"

	"go.uber.org/zap/zapcore"

	"github.com/legation-io/legation/internal/fault"
)

// halt is what happens where etcd would end the process. While files are
// opened it panics, and newServer turns that into an error. Later, in a
// goroutine of etcd's, it records why and lets that goroutine stand still:
// going on could acknowledge what is not on the disk.
type halt struct {
	log     *slog.Logger
	serving atomic.Bool

	once    sync.Once
	ctx     context.Context // ends when the disk failed
	failed  context.CancelFunc
	reason  string // reason and inPages are written once, before ctx ends
	inPages bool
}

func newHalt(log *slog.Logger) *halt {
	h := &halt{log: log}
	h.ctx, h.failed = context.WithCancel(context.Background())
	return h
}

// OnWrite implements zapcore.CheckWriteHook.
func (h *halt) OnWrite(e *zapcore.CheckedEntry, fields []zapcore.Field) {
	var b strings.Builder
	b.WriteString(e.Message)
	for _, a := range attrs(fields) {
		fmt.Fprintf(&b, "; %s: %v", a.Key, a.Value)
	}
	if !h.serving.Load() {
		panic(b.String())
	}
	h.once.Do(func() {
		h.reason = b.String()
		h.inPages = !strings.Contains(e.Message, "Raft") && !strings.Contains(e.Message, "WAL")
		h.failed()
		h.log.Error("the store stopped writing: its disk failed; mend the disk, end this process and start it anew", "reason", h.reason)
	})
	select {}
}

// err is why writes are refused, nil while all is well.
func (h *halt) err() error {
	if h.ctx.Err() == nil {
		return nil
	}
	return fault.New(fault.Unavailable, "the store's disk failed: %s; mend the disk and restart", h.reason)
}

// readErr is why reads are refused: after a failure of the page file its
// locks stay held. A failed log leaves reads as they were.
func (h *halt) readErr() error {
	if h.ctx.Err() == nil || !h.inPages {
		return nil
	}
	return h.err()
}
