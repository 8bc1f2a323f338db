package node

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"time"

	nodev1 "github.com/legation-io/legation/api/node/v1"
	attestnode "github.com/legation-io/legation/internal/attest/node"
	"github.com/legation-io/legation/internal/ca"
	"github.com/legation-io/legation/internal/fault"
	"github.com/legation-io/legation/internal/limit"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/grpc"
)

const (
	attestTimeout = 30 * time.Second
	maxCSR        = 16 << 10
)

// Attest admits a node. The proof is spent, and the node recorded, before
// anything is signed; the certificate leaves only once it is the node's
// recorded one. A crash in between costs a proof, never grants two nodes.
func (s *Server) Attest(stream grpc.BidiStreamingServer[nodev1.AttestRequest, nodev1.AttestResponse]) error {
	ctx, cancel := context.WithTimeoutCause(stream.Context(), attestTimeout, fault.New(fault.Unavailable, "attestation took longer than %s", attestTimeout))
	defer cancel()
	ip := addressOf(ctx)
	key := limit.IPKey(ip)
	err := func() error {
		release, ok := s.attestSlots.Acquire(key)
		defer release()
		if !ok {
			return limit.Error("attestations at once from "+key, time.Second)
		}
		if wait, ok := s.attestRate.Take(key, 1); !ok {
			return limit.Error("attestations from "+key, wait)
		}
		result, err := s.attest(ctx, &steps{stream: stream, wait: &s.readers}, attestnode.Attempt{Peer: ip})
		if err != nil {
			return fmt.Errorf("attest: %w", err)
		}
		return stream.Send(&nodev1.AttestResponse{Step: &nodev1.AttestResponse_Result{Result: result}})
	}()
	s.metrics.attested(err)
	if err != nil {
		s.refused(ctx, Refusal{Peer: key, Action: "Attest", Err: err})
	}
	return limit.GRPC(err)
}

func (s *Server) attest(ctx context.Context, steps *steps, attempt attestnode.Attempt) (*nodev1.AttestResult, error) {
	first, err := steps.receive(ctx)
	if err != nil {
		return nil, err
	}
	start := first.GetStart()
	if start == nil {
		return nil, fault.New(fault.Invalid, "the first message must be a start")
	}
	if err := s.checkHello(start.GetHello()); err != nil {
		return nil, err
	}
	attestor, ok := s.p.Attestors[start.GetMethod()]
	if !ok {
		return nil, fault.New(fault.Invalid, "attestation method %.64q is not configured here", start.GetMethod())
	}
	if len(start.GetPayload()) > attestnode.MaxPayload {
		return nil, fault.New(fault.Invalid, "a proof of %d bytes: at most %d", len(start.GetPayload()), attestnode.MaxPayload)
	}
	csr, err := parseCSR(start.GetCsr())
	if err != nil {
		return nil, err
	}
	attempt.Payload = start.GetPayload()
	attempt.Challenge = steps.challenge
	claim, err := attestor.Attest(ctx, attempt)
	if err != nil {
		return nil, err
	}
	id, err := attestnode.ID(s.p.TrustDomain, claim.Node)
	if err != nil {
		return nil, err
	}
	if err := checkAgentNames(csr, id); err != nil {
		return nil, err // before the proof is spent
	}
	if s.p.Blocked != nil {
		if err := s.p.Blocked(claim.Node); err != nil {
			return nil, err // likewise
		}
	}
	rec, err := s.p.Registry.Admit(ctx, attestor.Method(), claim)
	if err != nil {
		return nil, err
	}
	signed, err := s.signAgent(ctx, id, claim.Node, start.GetCsr(), csr.DNSNames)
	if err != nil {
		return nil, fmt.Errorf("node %s was admitted and its proof is used, but signing failed (attest again): %w", claim.Node, err)
	}
	if _, err := s.p.Registry.Issued(ctx, rec, "", signed.Serial, signed.NotAfter); err != nil {
		return nil, err
	}
	s.p.Log.Info("node attested", "node", claim.Node, "method", attestor.Method(), "serial", signed.Serial, "peer", attempt.Peer)
	return &nodev1.AttestResult{Chain: signed.Chain, SpiffeId: id.String(), Bundle: s.p.Bundle()}, nil
}

// checkAgentNames lets an agent be called what leads to its own machine.
func checkAgentNames(csr *x509.CertificateRequest, id spiffeid.ID) error {
	if err := attestnode.CheckLocalNames(csr.DNSNames); err != nil {
		return fmt.Errorf("the certificate request's DNS names: %w", err)
	}
	return checkNames(csr, id, csr.DNSNames, nil)
}

func (s *Server) signAgent(ctx context.Context, id spiffeid.ID, node string, csr []byte, dnsNames []string) (ca.X509Result, error) {
	results := s.p.Authority.SignX509(ctx, []ca.X509Request{{Profile: ca.ProfileAgent, CSR: csr, ID: id, DNSNames: dnsNames, Namespace: "system", Node: node}})
	if len(results) != 1 {
		return ca.X509Result{}, fmt.Errorf("the authority answered one request with %d results", len(results))
	}
	return results[0], results[0].Err
}

// Renew gives an agent its next certificate. TLS proved the current key.
func (s *Server) Renew(ctx context.Context, req *nodev1.RenewRequest) (*nodev1.RenewResponse, error) {
	caller, err := s.admitCall(ctx, req.GetTrustDomain())
	var res *nodev1.RenewResponse
	if err == nil {
		res, err = s.renew(ctx, caller, req)
	}
	if err != nil {
		s.refused(ctx, Refusal{Node: caller.Node, Action: "Renew", Err: err})
		return nil, limit.GRPC(fmt.Errorf("renew: %w", err))
	}
	return res, nil
}

func (s *Server) renew(ctx context.Context, caller Caller, req *nodev1.RenewRequest) (*nodev1.RenewResponse, error) {
	id, err := attestnode.ID(s.p.TrustDomain, caller.Node)
	if err != nil {
		return nil, err
	}
	csr, err := parseCSR(req.GetCsr())
	if err != nil {
		return nil, err
	}
	if err := checkAgentNames(csr, id); err != nil {
		return nil, err
	}
	// The store, not memory: a ban or renewal elsewhere counts from its commit.
	rec, err := s.p.Registry.Get(ctx, caller.Node)
	if err != nil {
		return nil, err
	}
	if err := rec.Check(caller.Serial); err != nil {
		return nil, err
	}
	signed, err := s.signAgent(ctx, id, caller.Node, req.GetCsr(), csr.DNSNames)
	if err != nil {
		return nil, err
	}
	if _, err := s.p.Registry.Issued(ctx, rec, caller.Serial, signed.Serial, signed.NotAfter); err != nil {
		return nil, err
	}
	return &nodev1.RenewResponse{Chain: signed.Chain}, nil
}

// readCSR parses a certificate request and looks at nothing in it.
func readCSR(der []byte) (*x509.CertificateRequest, error) {
	if len(der) == 0 || len(der) > maxCSR {
		return nil, fault.New(fault.Invalid, "a certificate request of %d bytes: 1 to %d are allowed", len(der), maxCSR)
	}
	csr, err := x509.ParseCertificateRequest(der)
	if err != nil {
		return nil, fault.New(fault.Invalid, "the certificate request is not PKCS #10 DER: %w", err)
	}
	return csr, nil
}

// parseCSR also checks that whoever made it has the key.
func parseCSR(der []byte) (*x509.CertificateRequest, error) {
	csr, err := readCSR(der)
	if err != nil {
		return nil, err
	}
	if err := csr.CheckSignature(); err != nil {
		return nil, fault.New(fault.Invalid, "the certificate request does not prove possession of its key: %w", err)
	}
	return csr, nil
}

// steps is the conversation of one attestation.
type steps struct {
	stream grpc.BidiStreamingServer[nodev1.AttestRequest, nodev1.AttestResponse]
	wait   interface {
		Add(int)
		Done()
	}
	challenges int
}

// receive waits for the caller's next message, or for the deadline: a caller
// that says nothing is let go.
func (c *steps) receive(ctx context.Context) (*nodev1.AttestRequest, error) {
	type received struct {
		req *nodev1.AttestRequest
		err error
	}
	got := make(chan received, 1)
	c.wait.Add(1)
	go func() {
		defer c.wait.Done()
		req, err := c.stream.Recv()
		got <- received{req, err}
	}()
	select {
	case r := <-got:
		if errors.Is(r.err, io.EOF) {
			return nil, fault.New(fault.Invalid, "the caller ended the conversation before attestation was done")
		}
		return r.req, r.err
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

func (c *steps) challenge(ctx context.Context, challenge []byte) ([]byte, error) {
	if c.challenges++; c.challenges > attestnode.MaxSteps {
		return nil, fmt.Errorf("the attestor asked for more than %d challenges", attestnode.MaxSteps)
	}
	if err := c.stream.Send(&nodev1.AttestResponse{Step: &nodev1.AttestResponse_Challenge{Challenge: challenge}}); err != nil {
		return nil, err
	}
	req, err := c.receive(ctx)
	if err != nil {
		return nil, err
	}
	response, ok := req.GetStep().(*nodev1.AttestRequest_ChallengeResponse)
	if !ok || len(response.ChallengeResponse) > attestnode.MaxChallenge {
		return nil, fault.New(fault.Invalid, "a challenge must be answered by a response of at most %d bytes", attestnode.MaxChallenge)
	}
	return response.ChallengeResponse, nil
}
