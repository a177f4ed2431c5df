#!/usr/bin/env bash
# Builds the release binary if need be and looks at this machine once: `scripts/check.sh -o json` and so on.
# Exit status: that of `nodevitals check` (0 Normal, 1 Warning, 2 Critical, 3 Unknown, 64 bad usage); 70 if the
# build failed.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
{ "$root/scripts/setup.sh" run && program=$("$root/scripts/build.sh" --quiet); } || exit 70
exec "$program" check "$@"
