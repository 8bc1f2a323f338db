//go:build linux

package secretmem

import (
	"bytes"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"
	"unsafe"
)

func TestBuffer(t *testing.T) {
	for _, size := range []int{1, 138, slotSize, slotSize + 1, 10_000} {
		source := bytes.Repeat([]byte{0xa5}, size)
		b, err := From(source)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(b.Bytes(), bytes.Repeat([]byte{0xa5}, size)) {
			t.Errorf("%d bytes: what was put in does not come out", size)
		}
		if !bytes.Equal(source, make([]byte, size)) {
			t.Errorf("%d bytes: the source was not wiped", size)
		}
		if err := b.Close(); err != nil {
			t.Error(err)
		}
		if b.Bytes() != nil {
			t.Errorf("%d bytes: readable after Close", size)
		}
		if err := b.Close(); err != nil {
			t.Errorf("second Close: %v", err)
		}
	}
	if _, err := New(0); err == nil {
		t.Error("a size of zero was accepted")
	}
}

func TestAClosedSlotReadsAsZerosAndIsNotGivenToAnotherAtOnce(t *testing.T) {
	b, err := From([]byte("the key of one workload"))
	if err != nil {
		t.Fatal(err)
	}
	stale := b.Bytes()
	b.Close()
	for range 100 {
		other, err := From([]byte("the key of another one."))
		if err != nil {
			t.Fatal(err)
		}
		defer other.Close()
	}
	if !bytes.Equal(stale, make([]byte, len(stale))) {
		t.Errorf("a closed slot reads %q", stale)
	}
}

func TestPagesAreLockedAndLeftOutOfDumps(t *testing.T) {
	b, err := New(64)
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	if !Locked() {
		t.Fatal("the memory lock limit is too small to lock one page")
	}
	flags := vmFlags(t, uintptr(unsafe.Pointer(&b.Bytes()[0])))
	for _, want := range []string{"lo", "dd", "wf"} { // locked, don't dump, wipe on fork
		if !strings.Contains(" "+flags+" ", " "+want+" ") {
			t.Errorf("VmFlags of the page are %q, want %q among them", flags, want)
		}
	}
}

// vmFlags finds the flags of the mapping that holds addr.
func vmFlags(t *testing.T, addr uintptr) string {
	smaps, err := os.ReadFile("/proc/self/smaps")
	if err != nil {
		t.Fatal(err)
	}
	inside := false
	for line := range strings.Lines(string(smaps)) {
		from, rest, ok := strings.Cut(line, "-")
		if start, isHex := parseHex(from); ok && isHex {
			to, _, _ := strings.Cut(rest, " ")
			end, _ := parseHex(to)
			inside = start <= addr && addr < end
		}
		if flags, ok := strings.CutPrefix(line, "VmFlags: "); ok && inside {
			return strings.TrimSpace(flags)
		}
	}
	t.Fatal("no mapping holds the address")
	return ""
}

func parseHex(s string) (uintptr, bool) {
	v, err := strconv.ParseUint(s, 16, 64)
	return uintptr(v), err == nil
}

func TestHarden(t *testing.T) {
	if os.Getenv("SECRETMEM_HARDEN") != "" {
		if err := Harden(); err != nil {
			t.Fatal(err)
		}
		os.Stdout.WriteString("hardened\n")
		os.Stdin.Read(make([]byte, 1))
		return
	}
	// In a process of its own: it cannot be undone.
	cmd := exec.Command(os.Args[0], "-test.run=^TestHarden$")
	cmd.Env = append(os.Environ(), "SECRETMEM_HARDEN=1")
	in, _ := cmd.StdinPipe()
	out, _ := cmd.StdoutPipe()
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { in.Close(); cmd.Wait() }()
	timer := time.AfterFunc(time.Minute, func() { cmd.Process.Kill() })
	defer timer.Stop()
	line := make([]byte, 64)
	n, err := out.Read(line)
	if err != nil || !strings.Contains(string(line[:n]), "hardened") {
		t.Fatalf("child said %q, %v", line[:n], err)
	}
	limits, err := os.ReadFile("/proc/" + strconv.Itoa(cmd.Process.Pid) + "/limits")
	if err != nil {
		t.Fatal(err)
	}
	for l := range strings.Lines(string(limits)) {
		if f := strings.Fields(l); strings.HasPrefix(l, "Max core file size") && (f[4] != "0" || f[5] != "0") {
			t.Errorf("core files are possible: %s", l)
		}
	}
}
