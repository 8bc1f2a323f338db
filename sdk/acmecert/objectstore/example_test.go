package objectstore_test

import (
	"fmt"

	"github.com/legation-io/legation/sdk/acmecert"
	"github.com/legation-io/legation/sdk/acmecert/objectstore"
)

// Two replicas of a service, on different machines, share one certificate:
// each makes this with the same sealing key.
func Example() {
	storage, err := objectstore.New(objectstore.Config{
		Addr: "unix:///run/legation/agent.sock",
		// openssl rand -hex 32 > sealing.key, and the same file for each replica:
		// KeyFile: "/etc/model/sealing.key",
		Key: []byte("\x6f\x1d\x0c\x3b\xe2\xa9\x48\x57\xb1\xa0\xc9\xd8\xe7\xf6\x05\x14\x23\x32\x41\x50\x6f\x7e\x8d\x9c\xab\xba\xc9\xd8\xe7\xf6\x05\x12"),
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer storage.Close()
	_, err = acmecert.New(acmecert.Config{Domains: []string{"model.example.org"}, TermsAgreed: true, Storage: storage})
	fmt.Println(err)

	_, err = objectstore.New(objectstore.Config{Addr: "unix:///run/legation/agent.sock"})
	fmt.Println(err)
	// Output:
	// <nil>
	// objectstore: one of Key and KeyFile is required: private keys never leave a machine unsealed
}
