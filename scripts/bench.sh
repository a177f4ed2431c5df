#!/usr/bin/env bash
# Measures the product on real parts, as root: `scripts/bench.sh`, or one part alone: `scripts/bench.sh agent`,
# `aggregator`, `loaded [crowd|nft|legacy]` (the agent on a big node), `earliness` (from each fault to the condition in the API).
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
[ "$(id -u)" = 0 ] || { echo "bench: run as root" >&2; exit 1; }
scripts/setup.sh test
NODEVITALS_BIN=$(scripts/build.sh --quiet)
export NODEVITALS_BIN
if [ "${1-}" = loaded ] || [ "${1-}" = earliness ]; then
  part=$1
  shift
  exec cargo bench --bench "$part" -- "$@"
fi
cargo bench --bench footprint -- "$@"
if [ $# = 0 ]; then
  cargo bench --bench loaded
  cargo bench --bench earliness
fi
