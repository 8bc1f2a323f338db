package handshake

import (
	"crypto/x509/pkix"
	"encoding/asn1"
	"slices"
	"strconv"
	"strings"
)

// rawNames prints distinguished names (DER), some of them a stranger's.
func rawNames(raw [][]byte) string {
	names := make([]string, 0, min(len(raw), maxList))
	for n, der := range raw {
		if n == maxList {
			names = append(names, "… ("+strconv.Itoa(len(raw))+" in all)")
			break
		}
		var rdn pkix.RDNSequence
		if rest, err := asn1.Unmarshal(der, &rdn); err != nil || len(rest) > 0 {
			names = append(names, "(a name that does not parse)")
			continue
		}
		var name pkix.Name
		name.FillFromRDNSequence(&rdn)
		names = append(names, quote(name.String(), maxName))
	}
	return strings.Join(names, ", ")
}

func listNames(names []string, before string) string {
	slices.Sort(names)
	if len(names) > maxList {
		names = append(names[:maxList:maxList], "…")
	}
	return before + strings.Join(names, ", ")
}
