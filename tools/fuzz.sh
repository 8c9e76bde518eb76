#!/usr/bin/env bash
# Usage: tools/fuzz.sh DURATION     Runs every fuzz target of the project for that long, one after the other: the go
# command fuzzes one target at a time. A failing input is left in the package's testdata/fuzz, to be kept.
set -euo pipefail
duration=${1:?usage: tools/fuzz.sh DURATION}
cd "$(dirname "$0")/.."

found=0
while IFS=: read -r file line; do
	target=$(sed -E 's/^func (Fuzz[A-Za-z0-9_]+).*/\1/' <<<"$line")
	found=1
	echo "fuzz: $(dirname "$file") $target for $duration"
	go test -run '^$' -fuzz "^$target\$" -fuzztime "$duration" "./$(dirname "$file")"
done < <(grep -rHE --include='*_test.go' '^func Fuzz[A-Za-z0-9_]+\(' -- * | sort)
[ $found = 1 ] || { echo "fuzz: there is no fuzz target" >&2; exit 1; }
