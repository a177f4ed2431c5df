#!/usr/bin/env bash
# Measures the product on real parts, as root: `scripts/bench.sh`, or one part alone: `scripts/bench.sh agent`,
# `aggregator`, `earliness` (from each fault to the condition in the API).
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
[ "$(id -u)" = 0 ] || { echo "bench: run as root" >&2; exit 1; }
scripts/setup.sh test
NODEVITALS_BIN=$(scripts/build.sh --quiet)
export NODEVITALS_BIN
if [ "${1-}" != earliness ]; then
  cargo bench --bench footprint -- "$@"
fi
if [ $# = 0 ] || [ "$1" = earliness ]; then
  cargo bench --bench earliness
fi
