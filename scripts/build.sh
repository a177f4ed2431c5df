#!/usr/bin/env bash
# Builds the program as it is shipped: `scripts/build.sh [MORE OPTIONS OF cargo rustc]`. The last line on standard
# output is its path.
#
# Statically linked, because the C library's pages are a tenth of the agent's memory otherwise; packed relocations,
# because half a megabyte of them is not needed to say what eight bytes a page can. Where the compiler links with lld by
# itself (x86_64), identical functions are folded, tables for unwinding left out and seldom used functions kept apart
# (layout.ld), and the code generator shares what many functions have in common (LLVM's machine outliner, twice). The
# program has a fixed address there, as Go's programs have: nothing has to be relocated at its start, so its tables of
# pointers stay in the file instead of in its own memory.
#
# Names are mangled by RFC 2603 in all crates, for layout.ld: the older names do not say which types a generic function
# was made for.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
manifest=$root/Cargo.toml
lean=()
if [[ $(uname -m) == x86_64 ]]; then
  lean=(-C link-arg=-Wl,--icf=all -C "link-arg=-Wl,--no-eh-frame-hdr" -C "link-arg=-Wl,-T,$root/scripts/layout.ld"
    -C llvm-args=-enable-machine-outliner=always -C llvm-args=-machine-outliner-reruns=1 -C relocation-model=static)
fi
export RUSTFLAGS="${RUSTFLAGS-} -C symbol-mangling-version=v0"
cargo rustc --release --locked --bin nodevitals --manifest-path "$manifest" "$@" -- \
  -C target-feature=+crt-static -C link-arg=-Wl,-z,pack-relative-relocs "${lean[@]}"
target=$(cargo metadata --format-version 1 --no-deps --manifest-path "$manifest" |
  sed -n 's/.*"target_directory":"\([^"]*\)".*/\1/p')
printf '%s\n' "$target/release/nodevitals"
