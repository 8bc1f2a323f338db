package main

import (
	"fmt"
	"os"
	"runtime"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// times are samples of a duration.
type times []time.Duration

// percentile of the samples by nearest rank, in milliseconds.
func (t times) percentile(p float64) float64 {
	if len(t) == 0 {
		return 0
	}
	sorted := slices.Sorted(slices.Values(t))
	n := int(p/100*float64(len(sorted)) + 0.5)
	return ms(sorted[min(max(n, 1), len(sorted))-1])
}

func (t times) p50() float64 { return t.percentile(50) }
func (t times) p99() float64 { return t.percentile(99) }

func ms(d time.Duration) float64 { return float64(d) / 1e6 }
func us(d time.Duration) float64 { return float64(d) / 1e3 }

// ownCPU is the CPU time this process has used.
func ownCPU() time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		panic(err) // no such error for self
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// cpuOf is the CPU time that processes have used, by the kernel's clock of
// each: /proc/PID/stat counts in steps of 10 ms only.
func cpuOf(pids ...int) (time.Duration, error) {
	var sum time.Duration
	for _, pid := range pids {
		var ts unix.Timespec
		const scheduler = 2 // CPUCLOCK_SCHED
		if err := unix.ClockGettime(int32(^pid)<<3|scheduler, &ts); err != nil {
			return 0, fmt.Errorf("CPU time of process %d: %w", pid, err)
		}
		sum += time.Duration(ts.Nano())
	}
	return sum, nil
}

// rss is the resident memory of a process in bytes.
func rss(pid int) (float64, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(b)) {
		var kib float64
		if n, _ := fmt.Sscanf(line, "VmRSS: %f kB", &kib); n == 1 {
			return kib * 1024, nil
		}
	}
	return 0, fmt.Errorf("process %d tells no VmRSS", pid)
}

// machine says where and under what load this runs.
func machine() string {
	return fmt.Sprintf("%d CPUs, %s, %s", runtime.NumCPU(), load(), runtime.Version())
}

// load is the machine's, with everything else that runs on it.
func load() string {
	b, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return "load unknown"
	}
	first, _, _ := strings.Cut(string(b), " ")
	return "load " + first
}

// crowd calls f from several goroutines until the time is over, and returns
// how many calls there were. The first error ends it.
func crowd(callers int, d time.Duration, f func(caller int) error) (int, error) {
	var calls atomic.Int64
	var failed atomic.Pointer[error]
	var wg sync.WaitGroup
	deadline := time.Now().Add(d)
	for c := range callers {
		wg.Go(func() {
			for time.Now().Before(deadline) && failed.Load() == nil {
				if err := f(c); err != nil {
					failed.CompareAndSwap(nil, &err)
					return
				}
				calls.Add(1)
			}
		})
	}
	wg.Wait()
	if err := failed.Load(); err != nil {
		return int(calls.Load()), *err
	}
	return int(calls.Load()), nil
}

// calmGC makes this process collect its garbage less often while it measures
// what other processes take; what it returns ends that.
func calmGC() (end func()) {
	before := debug.SetGCPercent(800)
	return func() { debug.SetGCPercent(before) }
}
