#!/usr/bin/env bash
# Everything that must hold before a change lands, as root on Debian: format, lints, release build, every test.
#
#   scripts/test.sh            everything
#   scripts/test.sh cluster    one integration test target (tests/cluster/), after the same preparation
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."

say() { printf '\ntest: %s\n' "$*" >&2; }

[ "$(id -u)" = 0 ] || { say "run as root: the tests make network namespaces, mounts and a cluster"; exit 1; }

say "setup"
scripts/setup.sh test

if [ $# -eq 0 ]; then
  say "format"
  cargo fmt --check
  say "lints"
  cargo clippy --all-targets -- -D warnings
  # The doors of the fuzz targets, which no other build sees.
  cargo clippy --lib -- --cfg fuzzing -D warnings
  # Their own lock file, which a changed dependency of the crate leaves behind unseen.
  cargo metadata --locked --format-version 1 --manifest-path fuzz/Cargo.toml > /dev/null
fi

# The cluster runs what is shipped: the release binary.
say "release build"
NODEVITALS_BIN=$(scripts/build.sh)
[ -x "$NODEVITALS_BIN" ] || { say "the release build made no nodevitals"; exit 1; }
export NODEVITALS_BIN

targets=("$@")
if [ ${#targets[@]} -eq 0 ]; then
  say "unit tests and examples in the documentation"
  cargo test --lib --bins
  # What the whole machine notices; what 5,000 agents do is a bench: scripts/bench.sh storm.
  cargo test --lib -- --ignored --test-threads=1 --skip five_thousand_agents
  cargo test --doc
  for target in tests/*.rs tests/*/main.rs; do
    [ -e "$target" ] || continue
    name=${target%/main.rs}
    targets+=("$(basename "$name" .rs)")
  done
fi

# Every failure is shown, not only that of the first target.
failed=()
for target in "${targets[@]}"; do
  say "$target"
  # One cluster at a time fits on a machine of two cores; the other tests wait for daemons and timers more than they compute.
  threads=(--test-threads=$((2 * $(nproc))))
  [ "$target" = cluster ] && threads=(--test-threads=1)
  cargo test --test "$target" -- "${threads[@]}" || failed+=("$target")
done

[ ${#failed[@]} -eq 0 ] || { say "failed: ${failed[*]}"; exit 1; }
say "all passed"
