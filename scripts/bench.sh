#!/usr/bin/env bash
# Measures the product on real parts, as root: `scripts/bench.sh`, or one part alone: `scripts/bench.sh agent`,
# `aggregator`, `loaded [crowd|nft|legacy]` (the agent on a big node), `earliness` (from each fault to the condition in the API),
# `storm` (5,000 agents that write at once), `scale [NODES...]` (the aggregator with thousands of Nodes; 4 GB of memory and
# half an hour with 15,000).
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
[ "$(id -u)" = 0 ] || { echo "bench: run as root" >&2; exit 1; }
scripts/setup.sh test
if [ "${1-}" = storm ]; then
  # All agents are in one process: unoptimised, they would wait for each other instead of for their turns.
  export CARGO_PROFILE_TEST_OPT_LEVEL=1 CARGO_PROFILE_DEV_OPT_LEVEL=1
  exec cargo test --lib -- --ignored --nocapture five_thousand_agents
fi
built=$(scripts/build.sh --quiet)
# cargo bench may put a program of its own, without optimisation, in the same place.
NODEVITALS_BIN=$built.shipped
cp -f "$built" "$NODEVITALS_BIN"
export NODEVITALS_BIN
if [[ "${1-}" =~ ^(loaded|earliness|scale)$ ]]; then
  part=$1
  shift
  exec cargo bench --bench "$part" -- "$@"
fi
cargo bench --bench footprint -- "$@"
if [ $# = 0 ]; then
  cargo bench --bench loaded
  cargo bench --bench earliness
fi
