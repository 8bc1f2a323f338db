package server

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/legation-io/legation/internal/ca"
	"github.com/legation-io/legation/internal/fault"
	"github.com/legation-io/legation/internal/ledger"
)

// superseded revokes a certificate that its node replaced because an
// instance's addresses changed. The journal must agree: the certificate is of
// that node, and the same instance has a newer one with other addresses.
func (s *server) superseded(ctx context.Context, node, serial string) error {
	old, err := s.journal.BySerial(serial)
	if err != nil {
		return fmt.Errorf("supersede %.64q: %w", serial, err)
	}
	records, _ := s.journal.List(ledger.Filter{Kind: old.Kind, SPIFFEID: old.SPIFFEID, Node: node})
	if err := supersedable(old, node, records); err != nil {
		return err
	}
	if !time.Now().Before(old.NotAfter) {
		return nil // it ended by itself
	}
	number, err := s.authority.RevokeSuperseded(ctx, serial)
	if err != nil {
		return err
	}
	s.log.Info("a superseded certificate is revoked", "audit", true, "node", node, "serial", serial, "spiffe_id", old.SPIFFEID, "crl_number", number)
	return nil
}

// supersedable says whether the journal agrees.
func supersedable(old ledger.Record, node string, records []ledger.Record) error {
	if old.Node != node || old.Kind != ledger.KindX509 || old.Profile != string(ca.ProfileWorkload) {
		return fault.New(fault.Denied, "supersede %s: it is not a workload's certificate on node %s", old.Serial, node)
	}
	newer := func(r ledger.Record) bool {
		return r.Node == node && r.Entry == old.Entry && r.Instance == old.Instance && r.IssuedAt.After(old.IssuedAt) && !slices.Equal(r.IPs, old.IPs)
	}
	if !slices.ContainsFunc(records, newer) {
		return fault.New(fault.Denied, "supersede %s: instance %s of entry %s has no newer certificate with other addresses", old.Serial, old.Instance, old.Entry)
	}
	return nil
}
