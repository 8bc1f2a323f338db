#!/usr/bin/env bash
# Builds the demo's conductor and runs it; make demo calls this.
set -euo pipefail
cd "$(dirname "$0")/../.."
go build -o bin/demo ./examples/feature-platform/demo
exec bin/demo "$@"
