// Package binding says which identities a declared policy is about; the
// control plane and the agents must agree.
package binding

import (
	"errors"
	"fmt"
	"strings"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// MeshNamespace is the namespace whose policies bind the identities of every
// namespace.
const MeshNamespace = "legation-system"

// Binds reports whether a policy of a namespace with these subjects is about
// an identity that was declared in another, or the same, namespace. No
// subjects are all identities of the namespace.
func Binds(policyNamespace string, subjects []string, identityNamespace, spiffeID string) bool {
	if policyNamespace != identityNamespace && policyNamespace != MeshNamespace {
		return false
	}
	if len(subjects) == 0 {
		return true
	}
	for _, s := range subjects {
		if match(s, spiffeID) {
			return true
		}
	}
	return false
}

// match compares segment by segment: "*" is any one, a last "**" one or more.
// Nothing is ever read as a regular expression.
func match(pattern, id string) bool {
	for {
		p, restOfPattern, morePattern := strings.Cut(pattern, "/")
		i, restOfID, moreID := strings.Cut(id, "/")
		switch {
		case p == "**" && !morePattern:
			return i != ""
		case p != "*" && p != i || i == "" && p == "*":
			return false
		case morePattern != moreID:
			return false
		case !morePattern:
			return true
		}
		pattern, id = restOfPattern, restOfID
	}
}

// Check judges a subject: a SPIFFE ID of the trust domain in which whole path
// segments may be "*", and the last one "**".
func Check(subject string, td spiffeid.TrustDomain) error {
	if len(subject) > 2048 {
		return fmt.Errorf("it has %d bytes, a SPIFFE ID has at most 2048", len(subject))
	}
	rest, ok := strings.CutPrefix(subject, "spiffe://"+td.Name()+"/")
	if !ok {
		return fmt.Errorf("it does not begin with spiffe://%s/", td.Name())
	}
	segments := strings.Split(rest, "/")
	for i, s := range segments {
		switch {
		case s == "*":
			segments[i] = "any"
		case s == "**" && i == len(segments)-1:
			segments[i] = "any"
		case s == "**":
			return errors.New(`"**" can only be the last segment`)
		case strings.Contains(s, "*"):
			return fmt.Errorf(`"*" stands for a whole segment, not for a part of %q`, s)
		}
	}
	_, err := spiffeid.FromString("spiffe://" + td.Name() + "/" + strings.Join(segments, "/"))
	return err
}
