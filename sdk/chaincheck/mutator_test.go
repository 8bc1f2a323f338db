package chaincheck

import (
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// TestOurVerdictsAndOpenSSLs bends good chains and asks the real openssl too.
// Every difference falls into a class that says why; others fail.
func TestOurVerdictsAndOpenSSLs(t *testing.T) {
	rounds, limit := 600, 10*time.Second
	long := os.Getenv("LEGATION_LONG") != ""
	if long {
		rounds, limit = 20_000, 15*time.Minute
	}
	seed := uint64(4)
	if s := os.Getenv("LEGATION_SEED"); s != "" {
		n, err := strconv.ParseUint(s, 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		seed = n
	}
	w := newWorld(t)
	deadline := time.Now().Add(limit)
	type verdict struct {
		mutant
		ours, theirs string // "" accepted
	}
	var mu sync.Mutex
	var done int
	var unexplained []verdict
	seen := map[string]int{}
	agree := map[string]int{}
	var group sync.WaitGroup
	const workers, enough = 2, 100
	for n := range workers {
		group.Go(func() {
			dir := t.TempDir()
			random := rand.New(rand.NewPCG(seed, uint64(n)))
			for range rounds / workers {
				mu.Lock()
				if time.Now().After(deadline) && done >= enough {
					mu.Unlock()
					return
				}
				m := breed(t, random, w)
				mu.Unlock()
				v := verdict{mutant: m, ours: ourVerdict(m), theirs: opensslVerdict(t, dir, m)}
				mu.Lock()
				done++
				switch {
				case v.ours == "" && v.theirs == "":
					agree["both accept"]++
				case v.ours != "" && v.theirs != "":
					agree["both refuse"]++
				default:
					classes := stricter
					if v.ours == "" {
						classes = laxer
					}
					if name := explained(classes, v.mutant, v.ours, v.theirs); name != "" {
						seen[name]++
					} else {
						unexplained = append(unexplained, v)
					}
				}
				mu.Unlock()
			}
		})
	}
	group.Wait()
	for i, v := range unexplained {
		if i == limitTold {
			t.Errorf("and %d more", len(unexplained)-i)
			break
		}
		t.Errorf("%s\n  ours:   %s\n  theirs: %s", v.what, orAccepted(v.ours), orAccepted(v.theirs))
		if dir := os.Getenv("LEGATION_KEEP"); dir != "" {
			keep(t, filepath.Join(dir, strconv.Itoa(i)), v.mutant)
		}
	}
	if done < enough || agree["both accept"] < done/50 || agree["both refuse"] < done/10 {
		t.Errorf("%d chains, %v: nothing is shown", done, agree)
	}
	var names []string
	for name, n := range seen {
		names = append(names, fmt.Sprintf("%s (%d)", name, n))
	}
	slices.Sort(names)
	for _, classes := range [][]class{stricter, laxer} {
		for _, c := range classes {
			if long && seen[c.name] == 0 {
				t.Errorf("no chain fell into the class %q: remove it", c.name)
			}
		}
	}
	t.Logf("%d chains; %v; differences: %s", done, agree, strings.Join(names, ", "))
}

// limitTold bounds a report.
const limitTold = 20

func orAccepted(s string) string {
	if s == "" {
		return "accepted"
	}
	return s
}

func ourVerdict(m mutant) string {
	p := Params{Usage: Client, Now: now, Roots: Roots{}}
	root, err := x509.ParseCertificate(m.root)
	if err != nil {
		return "the root does not parse: " + err.Error()
	}
	p.Roots[domain] = []*x509.Certificate{root}
	var lists [][]byte
	for _, der := range [][]byte{m.rootCRL, m.issueCRL} {
		if der != nil {
			lists = append(lists, der)
		}
	}
	var broken error
	p.CRLs, broken = NewCRLSet(lists)
	_, err = VerifyLeafRaw([][]byte{m.leaf, m.issuing}, p)
	if err == nil {
		return ""
	}
	if broken != nil {
		err = errors.Join(err, broken)
	}
	return err.Error()
}

var opensslError = regexp.MustCompile(`error \d+ at \d+ depth lookup: ?(.*)`)

func opensslVerdict(t testing.TB, dir string, m mutant) string {
	t.Helper()
	leaf := writePEM(t, dir, "leaf.pem", "CERTIFICATE", m.leaf)
	args := []string{"verify", "-x509_strict", "-purpose", "sslclient", "-crl_check_all", "-attime", strconv.FormatInt(now.Unix(), 10), "-no-CApath", "-no-CAstore",
		"-CAfile", writePEM(t, dir, "root.pem", "CERTIFICATE", m.root), "-untrusted", writePEM(t, dir, "issuing.pem", "CERTIFICATE", m.issuing)}
	for n, der := range [][]byte{m.rootCRL, m.issueCRL} {
		if der != nil {
			args = append(args, "-CRLfile", writePEM(t, dir, fmt.Sprintf("crl%d.pem", n), "X509 CRL", der))
		}
	}
	out, err := openssl(t, append(args, leaf)...)
	if err == nil {
		return ""
	}
	if found := opensslError.FindAllStringSubmatch(out, -1); found != nil {
		var all []string
		for _, f := range found {
			all = append(all, strings.TrimSpace(f[1]))
		}
		return strings.Join(all, "; ")
	}
	return "does not load: " + out
}

func keep(t testing.TB, dir string, m mutant) {
	t.Helper()
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	for name, der := range map[string][]byte{"leaf": m.leaf, "issuing": m.issuing, "root": m.root} {
		if err := os.WriteFile(filepath.Join(dir, name+".pem"), pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o600); err != nil {
			t.Fatal(err)
		}
	}
}
