package secretmem_test

import (
	"fmt"
	"log"

	"github.com/legation-io/legation/sdk/secretmem"
)

// A secret moves out of the buffer it came in, and is gone after Close.
func ExampleFrom() {
	received := []byte("a key's bytes")
	secret, err := secretmem.From(received)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(len(secret.Bytes()), received[0])
	if err := secret.Close(); err != nil {
		log.Fatal(err)
	}
	fmt.Println(secret.Bytes() == nil)
	// Output:
	// 13 0
	// true
}
