# make build | demo | test | test-long | bench | lint | generate
# Each target does its own set-up; see tools/setup.sh.
SHELL := /bin/bash
.DELETE_ON_ERROR:
VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)
LDFLAGS := -s -w -X github.com/legation-io/legation/internal/version.Version=$(VERSION)
ENVOY := $(CURDIR)/tools/envoy/envoy
export LEGATION_ENVOY ?= $(ENVOY)
SOURCES := $(shell find api cmd internal sdk -name '*.go' -not -name '*_test.go' 2>/dev/null) go.mod go.sum

# Without gRPC's /debug pages, which nobody can reach here: a fifth of the size.
TAGS := grpcnotrace

.PHONY: build demo test test-long bench lint generate envoy setup clean

build: bin/legation bin/legation-agent

bin/legation bin/legation-agent: $(SOURCES)
	CGO_ENABLED=0 go build -trimpath -tags $(TAGS) -ldflags '$(LDFLAGS)' -o $@ ./cmd/$(@F)

envoy:
	@tools/envoy.sh

# Debian packages the tests and the demo need, by name; only what is missing.
setup:
	@tools/setup.sh

demo: build envoy setup
	@examples/feature-platform/demo.sh

# Race detector on; four modules: the root, the SDK, an example that uses it, the test peers.
test: build envoy setup
	go test -race -timeout 20m ./...
	cd sdk && go test -race -timeout 10m ./...
	cd examples/model-service && go test -race -timeout 5m ./...
	cd test && go test -race -count=1 -timeout 20m ./... # what it runs is no package it imports

test-long: build envoy setup
	LEGATION_LONG=1 go test -race -timeout 120m ./...
	cd sdk && LEGATION_LONG=1 go test -race -timeout 60m ./...
	cd test && LEGATION_LONG=1 go test -race -timeout 60m ./...

bench: build envoy
	@mkdir -p bench/out
	go run ./bench -out bench/out/results.json

lint: tools/.bin/staticcheck
	@unformatted=$$(git ls-files '*.go' | grep -v '\.pb\.go$$' | xargs gofmt -l); if [ -n "$$unformatted" ]; then echo "not gofmt'ed:"; echo "$$unformatted"; exit 1; fi
	go vet ./... && (cd sdk && go vet ./...) && (cd examples/model-service && go vet ./...) && (cd test && go vet ./...)
	tools/.bin/staticcheck ./... && (cd sdk && ../tools/.bin/staticcheck ./...) && (cd examples/model-service && ../../tools/.bin/staticcheck ./...)

tools/.bin/%: tools/go.mod tools/go.sum
	cd tools && GOBIN=$(CURDIR)/tools/.bin go install tool

generate: tools/.bin/protoc-gen-go tools/.bin/protoc-gen-go-grpc
	@command -v protoc >/dev/null || tools/setup.sh protobuf-compiler
	PATH=$(CURDIR)/tools/.bin:$$PATH protoc --go_out=. --go_opt=paths=source_relative --go-grpc_out=. --go-grpc_opt=paths=source_relative api/*/v1/*.proto
	cd sdk && PATH=$(CURDIR)/tools/.bin:$$PATH protoc --go_out=. --go_opt=paths=source_relative --go-grpc_out=. --go-grpc_opt=paths=source_relative api/*/v1/*.proto

clean:
	rm -rf bin bench/out tools/.bin tools/envoy
