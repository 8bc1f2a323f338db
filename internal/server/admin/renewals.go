package admin

import (
	"fmt"
	"time"

	adminv1 "github.com/legation-io/legation/api/admin/v1"
	"github.com/legation-io/legation/sdk/renewal"
)

// describeRenewal tells how a certificate stands that this replica renews.
func describeRenewal(c *renewal.Certificate) *adminv1.RenewalStatus {
	unix := func(t *renewal.Time) int64 {
		if t == nil {
			return 0
		}
		return t.Unix()
	}
	s := &adminv1.RenewalStatus{
		Name: c.Key().String(), Issuer: c.Spec.IssuerRef.String(), Ready: c.Status.Is(renewal.Ready),
		NotAfterUnix: unix(c.Status.NotAfter), RenewalUnix: unix(c.Status.RenewalTime),
	}
	if n := c.Status.Revision; n != nil {
		s.Revision = uint32(*n)
	}
	if n := c.Status.FailedIssuanceAttempts; n != nil {
		s.FailedAttempts = uint32(*n)
	}
	if i := c.Status.Condition(renewal.Issuing); i != nil && i.Status != renewal.True {
		s.Message = i.Message
	} else if r := c.Status.Condition(renewal.Ready); r != nil && !s.Ready {
		s.Message = r.Message
	}
	return s
}

// renewalProblem says what is wrong with it; "" is nothing.
func renewalProblem(s *adminv1.RenewalStatus) string {
	if s.Ready && s.FailedAttempts == 0 {
		return ""
	}
	ends := "there is none"
	if s.NotAfterUnix != 0 {
		ends = "it ends at " + time.Unix(s.NotAfterUnix, 0).UTC().Format(time.RFC3339)
	}
	return fmt.Sprintf("the control plane's certificate %s is not renewed by %s, %s: %s; it is tried again by itself", s.Name, s.Issuer, ends, s.Message)
}
