// Package chaincheck verifies X.509-SVID chains: every link by path and by
// certificate revocation list, with a result that explains each link.
package chaincheck

import _ "github.com/spiffe/go-spiffe/v2/spiffeid"
