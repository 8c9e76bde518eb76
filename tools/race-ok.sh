#!/usr/bin/env bash
# Succeeds when the race detector can be used: cgo is on and the C compiler works.
set -euo pipefail
[ "$(go env CGO_ENABLED)" = 1 ]
printf '#include <stdlib.h>\nint main(void){return 0;}\n' | "$(go env CC)" -x c -o /dev/null - 2>/dev/null
