package chaincheck

import (
	"bufio"
	"compress/gzip"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"flag"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"
)

var update = flag.Bool("update", false, "rewrite testdata/limbo.verdicts, keeping the reasons")

type limboCase struct {
	ID             string                        `json:"id"`
	Description    string                        `json:"description"`
	ValidationKind string                        `json:"validation_kind"`
	Trusted        []string                      `json:"trusted_certs"`
	Untrusted      []string                      `json:"untrusted_intermediates"`
	Peer           string                        `json:"peer_certificate"`
	ValidationTime string                        `json:"validation_time"`
	ExpectedResult string                        `json:"expected_result"`
	ExtendedUsage  []string                      `json:"extended_key_usage"`
	MaxDepth       *int                          `json:"max_chain_depth"`
	CRLs           []string                      `json:"crls"`
	ExpectedPeer   *struct{ Kind, Value string } `json:"expected_peer_name"`
}

func limboCases(t testing.TB) []limboCase {
	t.Helper()
	file, err := os.Open("testdata/limbo.json.gz")
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	reader, err := gzip.NewReader(file)
	if err != nil {
		t.Fatal(err)
	}
	var corpus struct {
		TestCases []limboCase `json:"testcases"`
	}
	if err := json.NewDecoder(reader).Decode(&corpus); err != nil {
		t.Fatal(err)
	}
	return corpus.TestCases
}

func pemDER(t testing.TB, text string) []byte {
	t.Helper()
	block, _ := pem.Decode([]byte(text))
	if block == nil {
		t.Fatalf("no PEM block in %.80q", text)
	}
	return block.Bytes
}

// verdict runs the path and CRL core, then the name check that the web PKI
// would do: limbo's certificates carry DNS and IP names, not SPIFFE IDs.
func (c *limboCase) verdict(t testing.TB) (Cause, string, Work) {
	t.Helper()
	return c.verdictUnder(t, nil)
}

func hostOf(c *limboCase) (host, bool) {
	if c.ExpectedPeer == nil {
		return host{}, false
	}
	return parseHost(c.ExpectedPeer.Value)
}

// verdictUnder overrides the policy of revocation; nil is the case's own.
func (c *limboCase) verdictUnder(t testing.TB, policy *Policy) (Cause, string, Work) {
	t.Helper()
	parse := func(texts ...string) ([]*x509.Certificate, error) {
		var certs []*x509.Certificate
		for _, text := range texts {
			cert, err := x509.ParseCertificate(pemDER(t, text))
			if err != nil {
				return nil, err
			}
			certs = append(certs, cert)
		}
		return certs, nil
	}
	anchors, err1 := parse(c.Trusted...)
	chain, err2 := parse(append([]string{c.Peer}, c.Untrusted...)...)
	if err := errors.Join(err1, err2); err != nil {
		return Malformed, err.Error(), Work{}
	}
	p := Params{Usage: Server, Revocation: Off, Now: time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)}
	if c.ValidationKind == "CLIENT" {
		p.Usage = Client
	}
	if len(c.ExtendedUsage) == 1 {
		p.Usage = map[string]Usage{"clientAuth": Client, "serverAuth": Server}[c.ExtendedUsage[0]]
	}
	if c.ValidationTime != "" {
		now, err := time.Parse(time.RFC3339Nano, c.ValidationTime)
		if err != nil {
			t.Fatal(err)
		}
		p.Now = now
	}
	if c.MaxDepth != nil {
		p.MaxDepth = *c.MaxDepth
		if p.MaxDepth == 0 {
			p.MaxDepth = -1
		}
	}
	if len(c.CRLs) > 0 {
		p.Revocation = Require
		var ders [][]byte
		for _, text := range c.CRLs {
			ders = append(ders, pemDER(t, text))
		}
		p.CRLs, _ = NewCRLSet(ders)
	}
	if policy != nil {
		p.Revocation = *policy
	}
	if _, ok := hostOf(c); ok && p.Usage == Server {
		// What the function for servers says is the verdict.
		p.Chain = chain
		result, err := VerifyServerName(p, anchors, c.ExpectedPeer.Value)
		if err == nil {
			return "", "", result.Work
		}
		refused := err.(*Error)
		return refused.Cause, refused.Error(), refused.Work
	}
	leaf, refused := factsOf(chain[0])
	if refused != nil {
		return refused.Cause, refused.Error(), Work{}
	}
	s := newSearch(leaf, chain[1:], anchors, p)
	if refused := s.run(); refused != nil {
		return refused.Cause, refused.Error(), s.work
	}
	if c.ExpectedPeer != nil {
		if want, ok := hostOf(c); !ok || !leaf.servesHost(want) {
			return WrongSAN, "no name is " + c.ExpectedPeer.Value, s.work
		}
	}
	return "", "", s.work
}

type written struct{ verdict, reason string }

func writtenVerdicts(t *testing.T) map[string]written {
	t.Helper()
	file, err := os.Open("testdata/limbo.verdicts")
	if err != nil {
		if *update {
			return map[string]written{}
		}
		t.Fatal(err)
	}
	defer file.Close()
	verdicts := map[string]written{}
	for lines := bufio.NewScanner(file); lines.Scan(); {
		if strings.HasPrefix(lines.Text(), "#") || lines.Text() == "" {
			continue
		}
		fields := strings.SplitN(lines.Text(), "\t", 3)
		if len(fields) < 2 {
			t.Fatalf("bad line %q", lines.Text())
		}
		w := written{verdict: fields[1]}
		if len(fields) == 3 {
			w.reason = fields[2]
		}
		if _, twice := verdicts[fields[0]]; twice {
			t.Fatalf("%s has two verdicts", fields[0])
		}
		verdicts[fields[0]] = w
	}
	return verdicts
}

// TestLimboCorpus holds every case of the public path validation corpus
// against its written verdict. A case where we differ from the corpus has a
// reason in words; no other may differ.
func TestLimboCorpus(t *testing.T) {
	verdicts := writtenVerdicts(t)
	cases := limboCases(t)
	var page strings.Builder
	page.WriteString("# case, tab, accept or refuse and the cause, tab, why we differ from the corpus (only where we do)\n")
	differing, wronglyAccepted := 0, 0
	for _, c := range cases {
		cause, detail, _ := c.verdict(t)
		got := "accept"
		if cause != "" {
			got = "refuse " + string(cause)
		}
		w, listed := verdicts[c.ID]
		differs := (cause == "") != (c.ExpectedResult == "SUCCESS")
		if differs {
			differing++
			if cause == "" {
				wronglyAccepted++
			}
		}
		line := c.ID + "\t" + got
		if differs {
			line += "\t" + w.reason
		}
		page.WriteString(line + "\n")
		delete(verdicts, c.ID)
		switch {
		case *update && differs && w.reason == "":
			t.Logf("%s: %s, the corpus says %s: %s\n    %s", c.ID, got, c.ExpectedResult, detail, strings.Join(strings.Fields(c.Description), " "))
		case *update:
		case !listed:
			t.Errorf("%s has no written verdict; got %s (%s)", c.ID, got, detail)
		case got != w.verdict:
			t.Errorf("%s: %s (%s), written is %s", c.ID, got, detail, w.verdict)
		case differs && len(w.reason) < 10:
			t.Errorf("%s: %s, the corpus says %s, and no reason is written", c.ID, got, c.ExpectedResult)
		case !differs && w.reason != "":
			t.Errorf("%s: a reason is written for a verdict that does not differ", c.ID)
		}
	}
	for id := range verdicts {
		t.Errorf("%s has a written verdict and is not in the corpus", id)
	}
	t.Logf("%d cases, %d differ from the corpus for a written reason, %d of them accepted", len(cases), differing, wronglyAccepted)
	if *update {
		if err := os.WriteFile("testdata/limbo.verdicts", []byte(page.String()), 0o644); err != nil {
			t.Fatal(err)
		}
		fmt.Println("testdata/limbo.verdicts is rewritten")
	}
}

// TestLimboCorpusUnderEveryPolicy: without lists, Require refuses all that
// was accepted, Prefer and Off refuse nothing more; with lists, Off is the only
// one that does not look at them.
func TestLimboCorpusUnderEveryPolicy(t *testing.T) {
	require, prefer, off := Require, Prefer, Off
	for _, c := range limboCases(t) {
		own, detail, _ := c.verdict(t)
		if own == TooComplex {
			continue
		}
		strict, _, _ := c.verdictUnder(t, &require)
		lax, _, _ := c.verdictUnder(t, &prefer)
		none, _, _ := c.verdictUnder(t, &off)
		switch {
		case len(c.CRLs) > 0 && strict != own, len(c.CRLs) == 0 && none != own, len(c.CRLs) == 0 && lax != own:
			t.Errorf("%s: %q (%s); Require %q, Prefer %q, Off %q", c.ID, own, detail, strict, lax, none)
		case len(c.CRLs) == 0 && own == "" && strict == "":
			t.Errorf("%s: accepted without any list under Require (%q)", c.ID, strict)
		case own == Revoked && (lax != Revoked || none != ""):
			t.Errorf("%s: revoked; Prefer %q, Off %q", c.ID, lax, none)
		}
	}
}

// TestA09LimboDenialOfServiceCases counts work, not time.
func TestA09LimboDenialOfServiceCases(t *testing.T) {
	seen := 0
	for _, c := range limboCases(t) {
		if !strings.HasPrefix(c.ID, "pathological::") {
			continue
		}
		seen++
		cause, _, work := c.verdict(t)
		if work.Signatures > maxSignatures+1 || work.Steps > maxSteps+1 || work.Comparisons > maxComparisons+1 {
			t.Errorf("%s (%s) took %+v", c.ID, cause, work)
		}
	}
	if seen < 10 {
		t.Errorf("only %d cases", seen)
	}
}
