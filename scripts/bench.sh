#!/usr/bin/env bash
# Measures the product on real parts, as root: `scripts/bench.sh`, or `scripts/bench.sh agent` or `aggregator` alone, and
# `scripts/bench.sh loaded [nft|legacy]` for the agent on a big node.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
[ "$(id -u)" = 0 ] || { echo "bench: run as root" >&2; exit 1; }
scripts/setup.sh test
NODEVITALS_BIN=$(scripts/build.sh --quiet)
export NODEVITALS_BIN
if [ "${1:-}" = loaded ]; then
  shift
  exec cargo bench --bench loaded -- "$@"
fi
exec cargo bench --bench footprint -- "$@"
