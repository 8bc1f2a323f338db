package workloadapi

import (
	"io"
	"net"
	"path/filepath"
	"slices"
	"testing"
	"time"

	pb "github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
)

func dial(t testing.TB, socket string) (pb.SpiffeWorkloadAPIClient, func()) {
	conn, err := grpc.NewClient("unix:"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	return pb.NewSpiffeWorkloadAPIClient(conn), func() { conn.Close() }
}

func report(b *testing.B, all []time.Duration) {
	slices.Sort(all)
	b.ReportMetric(float64(all[len(all)*9/10].Microseconds()), "p90-µs")
	b.ReportMetric(float64(all[len(all)/2].Microseconds()), "p50-µs")
	b.ReportMetric(float64(all[len(all)*99/100].Microseconds()), "p99-µs")
}

// BenchmarkFloor is what the machine gives a bare connect, one byte there and
// one back, in the same process.
func BenchmarkFloor(b *testing.B) {
	l, err := net.Listen("unix", filepath.Join(b.TempDir(), "s"))
	if err != nil {
		b.Fatal(err)
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				io.CopyN(c, c, 1)
			}()
		}
	}()
	var all []time.Duration
	var buf [1]byte
	for b.Loop() {
		begun := time.Now()
		c, err := net.Dial("unix", l.Addr().String())
		if err != nil {
			b.Fatal(err)
		}
		c.Write(buf[:])
		if _, err := io.ReadFull(c, buf[:]); err != nil {
			b.Fatal(err)
		}
		all = append(all, time.Since(begun))
		c.Close()
	}
	l.Close()
	<-ended
	report(b, all)
}
