package aes256gcm_test

import (
	"fmt"

	"github.com/legation-io/legation/sdk/aes256gcm"
)

func Example() {
	// A program writes: import _ "github.com/legation-io/legation/sdk/aes256gcm"
	fmt.Println("AES-256-GCM only:", aes256gcm.Active())
	// Output: AES-256-GCM only: true
}
