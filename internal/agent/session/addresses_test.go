package session

import (
	"fmt"
	"testing"
)

const trie = `Main:
  +-- 0.0.0.0/0 3 0 5
     |-- 0.0.0.0
        /0 universe UNICAST
     +-- 10.7.0.0/24 2 0 2
        |-- 10.7.0.0
           /24 link UNICAST
        |-- 10.7.0.5
           /32 host LOCAL
        |-- 10.7.0.255
           /32 link BROADCAST
     |-- 127.0.0.1
        /32 host LOCAL
     |-- 169.254.3.3
        /32 host LOCAL
Local:
  |-- 10.7.0.5
     /32 host LOCAL
  |-- 192.0.2.9
     /32 host LOCAL
`

const inet6 = `00000000000000000000000000000001 01 80 10 80       lo
fe8000000000000000a1b2fffec3d4e5 02 40 20 80     eth0
fd070000000000000000000000000005 02 40 00 80     eth0
fd070000000000000000000000000006 02 40 00 c0     eth0
20010db8000000000000000000000009 02 40 00 88     eth0
not a line
`

func TestAddressesOfANamespaceAreTheGlobalOnesInUse(t *testing.T) {
	if got := fmt.Sprint(localAddresses([]byte(trie))); got != "[10.7.0.5 192.0.2.9]" {
		t.Errorf("IPv4: %s", got)
	}
	if got := fmt.Sprint(inet6Addresses([]byte(inet6))); got != "[fd07::5]" {
		t.Errorf("IPv6: %s", got)
	}
}
