#!/usr/bin/env bash
# Random faults on a real cluster, as root: `scripts/soak.sh [SEED [MINUTES]]`, by default seed 1 for thirty minutes. The same
# seed makes the same faults in the same order.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
[ "$(id -u)" = 0 ] || { echo "soak: run as root" >&2; exit 1; }
scripts/setup.sh test
NODEVITALS_BIN=${NODEVITALS_BIN:-$(scripts/build.sh --quiet)}
export NODEVITALS_BIN NODEVITALS_SOAK_SEED=${1:-1} NODEVITALS_SOAK_MINUTES=${2:-30}
exec cargo test --test cluster -- --ignored --nocapture random_faults
