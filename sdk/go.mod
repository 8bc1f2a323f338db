module github.com/legation-io/legation/sdk

go 1.26.7

require (
	github.com/spiffe/go-spiffe/v2 v2.9.0
	golang.org/x/crypto v0.58.0
)
