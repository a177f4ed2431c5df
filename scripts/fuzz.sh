#!/usr/bin/env bash
# Fuzzes the parsers: `scripts/fuzz.sh TARGET [SECONDS]`, `scripts/fuzz.sh all [SECONDS]` (each for so long, in turn), or
# `scripts/fuzz.sh --build` for the programs alone. Without an argument: the targets.
#
# With the stable compiler: what libFuzzer needs of it are four options of LLVM. AddressSanitizer, which needs a nightly
# one, would find nothing more, since there is no unsafe code; an overflow or a failed assertion ends the run. What it
# found is in fuzz/artifacts/TARGET; run the program with that file as its argument to see it again.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
root=$PWD
host=$(rustc -vV | sed -n 's/^host: //p')
target=${CARGO_TARGET_DIR:-$root/fuzz/target}
mapfile -t targets < <(sed -n 's/^name = "\([a-z0-9_]*\)"$/\1/p' fuzz/Cargo.toml)
# What a message of a target can be at most, in bytes; a page of netlink, or a file of some kilobytes, for all others.
longest=4096

build() {
  # Only what is built for the target is instrumented, so that build scripts and macros still run.
  RUSTFLAGS="--cfg fuzzing -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
-Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
-Cllvm-args=-sanitizer-coverage-trace-compares ${RUSTFLAGS:-}" \
    cargo build --release --locked --manifest-path fuzz/Cargo.toml --target "$host" --target-dir "$target" "$@"
}

run() {
  local name=$1 seconds=$2
  mkdir -p "fuzz/corpus/$name" "fuzz/artifacts/$name"
  "$target/$host/release/$name" "fuzz/corpus/$name" "fuzz/corpus-seeds/$name" -max_total_time="$seconds" \
    -rss_limit_mb=2048 -timeout=10 -max_len=$longest -print_final_stats=1 -artifact_prefix="fuzz/artifacts/$name/"
}

case ${1:-} in
  '') printf '%s\n' "${targets[@]}" ;;
  --build) build --bins ;;
  all)
    build --bins
    for name in "${targets[@]}"; do run "$name" "${2:-60}"; done
    ;;
  *)
    build --bin "$1"
    run "$1" "${2:-60}"
    ;;
esac
