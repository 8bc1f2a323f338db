package renewal

import (
	"encoding/json"
	"fmt"
	"slices"
	"time"
)

// CertificateStatus is what became of a Certificate; the Scheduler writes it.
type CertificateStatus struct {
	Conditions []CertificateCondition `json:"conditions,omitempty"`
	// LastFailureTime is when the latest issuance failed; nil when it did not.
	LastFailureTime *Time `json:"lastFailureTime,omitempty"`
	// NotBefore and NotAfter are those of the certificate in the Secret.
	NotBefore *Time `json:"notBefore,omitempty"`
	NotAfter  *Time `json:"notAfter,omitempty"`
	// RenewalTime is when it is next renewed; nil when that is not planned.
	RenewalTime *Time `json:"renewalTime,omitempty"`
	// Revision counts issued certificates, from 1.
	Revision *int `json:"revision,omitempty"`
	// NextPrivateKeySecretName is the Secret that holds the key and the request
	// of an issuance that runs or is to be resumed.
	NextPrivateKeySecretName *string `json:"nextPrivateKeySecretName,omitempty"`
	// FailedIssuanceAttempts counts failures since the last success.
	FailedIssuanceAttempts *int        `json:"failedIssuanceAttempts,omitempty"`
	ACME                   *ACMEStatus `json:"acme,omitempty"`
}

// ACMEStatus is what an ACME CA said (RFC 9773). Carried, not used.
type ACMEStatus struct {
	ARI *ARIStatus `json:"ari,omitempty"`
}

// ARIStatus is ACME renewal information.
type ARIStatus struct {
	SuggestedWindow *ACMEWindow `json:"suggestedWindow,omitempty"`
	ExplanationURL  string      `json:"explanationURL,omitempty"`
	LastChecked     *Time       `json:"lastChecked,omitempty"`
	NextCheck       *Time       `json:"nextCheck,omitempty"`
	LastError       string      `json:"lastError,omitempty"`
}

// ACMEWindow is when a CA would like to be asked.
type ACMEWindow struct {
	Start *Time `json:"start"`
	End   *Time `json:"end"`
}

// ConditionType is what a condition is about.
type ConditionType string

// The conditions.
const (
	// Ready: the Secret holds a key and a certificate that belong together, are
	// valid now, and are what the spec asks for.
	Ready ConditionType = "Ready"
	// Issuing is True while an issuance runs, or is to run at once because
	// somebody set it by hand; False with the reason after a failure; absent
	// otherwise.
	Issuing ConditionType = "Issuing"
)

// ConditionStatus is True, False or Unknown.
type ConditionStatus string

// The statuses.
const (
	True    ConditionStatus = "True"
	False   ConditionStatus = "False"
	Unknown ConditionStatus = "Unknown"
)

// CertificateCondition is one condition.
type CertificateCondition struct {
	Type               ConditionType   `json:"type"`
	Status             ConditionStatus `json:"status"`
	LastTransitionTime *Time           `json:"lastTransitionTime,omitempty"` // when Status last changed
	Reason             string          `json:"reason,omitempty"`
	Message            string          `json:"message,omitempty"`
	ObservedGeneration int64           `json:"observedGeneration,omitempty"` // of the spec it speaks about
}

// The reasons of conditions; those that cert-manager has are spelt as there.
const (
	ReasonDoesNotExist         = "DoesNotExist"         // no Secret
	ReasonMissingData          = "MissingData"          // no key or no certificate in it
	ReasonInvalidKeyPair       = "InvalidKeyPair"       // they do not belong together
	ReasonInvalidCertificate   = "InvalidCertificate"   // it cannot be read
	ReasonSecretMismatch       = "SecretMismatch"       // key or names are not what the spec asks for
	ReasonIncorrectIssuer      = "IncorrectIssuer"      // another issuer issued it
	ReasonIncorrectCertificate = "IncorrectCertificate" // the Secret is another Certificate's
	ReasonRequestChanged       = "RequestChanged"       // the spec changed since
	ReasonRenewing             = "Renewing"             // renewalTime has come
	ReasonExpired              = "Expired"
	ReasonManuallyTriggered    = "ManuallyTriggered"
	ReasonReady                = "Ready"
	ReasonFailed               = "Failed"
	ReasonNotYetValid          = "NotYetValid"   // valid from a time that has not come: a clock is wrong
	ReasonInvalidSpec          = "InvalidSpec"   // refused; nothing is issued
	ReasonNoIssuer             = "IssuerMissing" // issuerRef names none that is known
)

// Condition returns the condition of a type, or nil.
func (s *CertificateStatus) Condition(t ConditionType) *CertificateCondition {
	for i := range s.Conditions {
		if s.Conditions[i].Type == t {
			return &s.Conditions[i]
		}
	}
	return nil
}

// Is reports whether a condition is True.
func (s *CertificateStatus) Is(t ConditionType) bool {
	c := s.Condition(t)
	return c != nil && c.Status == True
}

// SetCondition sets a condition for a generation of the spec. Its
// LastTransitionTime moves only when its status does.
func (s *CertificateStatus) SetCondition(now time.Time, generation int64, t ConditionType, status ConditionStatus, reason, message string) {
	next := CertificateCondition{Type: t, Status: status, LastTransitionTime: NewTime(now), Reason: reason, Message: message, ObservedGeneration: generation}
	if old := s.Condition(t); old != nil {
		if old.Status == status && old.LastTransitionTime != nil {
			next.LastTransitionTime = old.LastTransitionTime
		}
		*old = next
		return
	}
	s.Conditions = append(s.Conditions, next)
}

// RemoveCondition removes a condition.
func (s *CertificateStatus) RemoveCondition(t ConditionType) {
	s.Conditions = slices.DeleteFunc(s.Conditions, func(c CertificateCondition) bool { return c.Type == t })
}

// Time is a moment, written as RFC 3339 in UTC, in whole seconds.
type Time struct{ time.Time }

// NewTime returns t in whole seconds.
func NewTime(t time.Time) *Time { return &Time{t.UTC().Truncate(time.Second)} }

// At returns the moment, or the zero time of nil.
func (t *Time) At() time.Time {
	if t == nil {
		return time.Time{}
	}
	return t.Time
}

// MarshalJSON implements json.Marshaler; the zero time is null.
func (t Time) MarshalJSON() ([]byte, error) {
	if t.IsZero() {
		return []byte("null"), nil
	}
	return json.Marshal(t.UTC().Format(time.RFC3339))
}

// UnmarshalJSON implements json.Unmarshaler.
func (t *Time) UnmarshalJSON(raw []byte) error {
	var s *string
	if err := json.Unmarshal(raw, &s); err != nil {
		return fmt.Errorf("a time is a string like %q", "2026-01-31T12:00:00Z")
	}
	if s == nil {
		*t = Time{}
		return nil
	}
	return t.parse(*s)
}

func (t *Time) parse(s string) error {
	at, err := time.Parse(time.RFC3339, s)
	if err != nil || at.Year() < 1 || at.UTC().Year() < 1 || at.UTC().Year() > 9999 {
		return fmt.Errorf("%q is no time; write it like %q", s, "2026-01-31T12:00:00Z")
	}
	t.Time = at.UTC().Truncate(time.Second)
	return nil
}

// Duration is a length of time, written as time.ParseDuration reads it: "2160h".
type Duration struct{ time.Duration }

// NewDuration returns d as a spec wants it.
func NewDuration(d time.Duration) *Duration { return &Duration{d} }

// MarshalJSON implements json.Marshaler.
func (d Duration) MarshalJSON() ([]byte, error) { return json.Marshal(d.String()) }

// UnmarshalJSON implements json.Unmarshaler.
func (d *Duration) UnmarshalJSON(raw []byte) error {
	var s string
	if err := json.Unmarshal(raw, &s); err != nil {
		return fmt.Errorf("a duration is a string like %q", "2160h")
	}
	return d.parse(s)
}

func (d *Duration) parse(s string) error {
	v, err := time.ParseDuration(s)
	if err != nil {
		return fmt.Errorf("%q is no duration; write it in h, m and s like %q (90 days)", s, "2160h")
	}
	d.Duration = v
	return nil
}
