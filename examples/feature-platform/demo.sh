#!/usr/bin/env bash
# Builds the demo's conductor and its Go programs, and runs it; make demo
# calls this.
set -euo pipefail
cd "$(dirname "$0")/../.."
for program in demo featurestore retrieval; do
  CGO_ENABLED=0 go build -o "bin/$program" "./examples/feature-platform/$program"
done
exec bin/demo "$@"
