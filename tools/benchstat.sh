#!/bin/bash
# Runs the Go benchmarks of this tree and of another commit in turn and compares them with benchstat.
#
#   tools/benchstat.sh BASE BENCH COUNT BENCHTIME PACKAGE...
#
# An empty BASE is HEAD while something is not committed, else where this branch left origin/main, else the commit before.
# Both are built first; then they take turns, so that a neighbour that wakes up meets both alike.
set -euo pipefail
base=$1 bench=$2 count=$3 benchtime=$4
shift 4
GO=${GO:-go}

if [ -z "$base" ]; then
	fork=$(git merge-base HEAD origin/main 2>/dev/null || true)
	if [ -n "$(git status --porcelain --untracked-files=no)" ]; then
		base=HEAD
	elif [ -n "$fork" ] && [ "$fork" != "$(git rev-parse HEAD)" ]; then
		base=$fork
	else
		base=HEAD~1
	fi
fi
commit=$(git rev-parse --verify --quiet "$base^{commit}") || { echo "benchstat: there is no commit $base" >&2; exit 2; }

tmp=$(mktemp -d)
child=
cleanup() {
	if [ -n "$child" ]; then kill "$child" 2>/dev/null || true; wait "$child" 2>/dev/null || true; fi
	git worktree remove --force "$tmp/tree" 2>/dev/null || true
	rm -rf "$tmp"
	git worktree prune
}
trap cleanup EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

# What runs in the background can be ended at once; a shell hears of a signal only when what runs before it has ended.
run() {
	"$@" &
	child=$!
	local code=0
	wait "$child" || code=$?
	child=
	return $code
}

git worktree add --quiet --detach "$tmp/tree" "$commit"
trees=("$tmp/tree" "$PWD")
names=(base new)
for package in "$@"; do
	for i in 0 1; do
		if [ -d "${trees[i]}/$package" ]; then
			run "$GO" -C "${trees[i]}" test -c -o "$tmp/${names[i]}-$(basename "$package").test" "$package"
		fi
	done
done
echo "benchstat: $(git log -1 --format='%h %s' "$commit") against this tree, $count rounds" >&2
for round in $(seq "$count"); do
	echo "benchstat: round $round of $count" >&2
	for package in "$@"; do
		for turn in 0 1; do
			i=$(((round + turn) % 2))
			binary=$tmp/${names[i]}-$(basename "$package").test
			[ -x "$binary" ] || continue
			cd "${trees[i]}/$package"
			run "$binary" -test.run '^$' -test.bench "$bench" -test.benchmem -test.benchtime "$benchtime" -test.timeout 30m >>"$tmp/${names[i]}.txt" ||
				{ tail -n 20 "$tmp/${names[i]}.txt" >&2; echo "benchstat: the benchmarks of $package (${names[i]}) failed" >&2; exit 1; }
			cd "${trees[1]}"
		done
	done
done
run "$GO" tool -modfile=tools/go.mod benchstat "base=$tmp/base.txt" "new=$tmp/new.txt"
