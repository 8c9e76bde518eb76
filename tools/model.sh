#!/usr/bin/env bash
# Usage: tools/model.sh             check every model and every broken variant of docs/model/variants.txt
#        tools/model.sh short       only those of the short run
#        tools/model.sh trail NAME  show how a variant of that name fails, step by step
#
# One line per variant. A base must hold in every state. A broken variant must break the property it names, since a
# checker that finds nothing wrong with it checks nothing.
set -euo pipefail
cd "$(dirname "$0")/../docs/model"
exec </dev/null

for program in spin "${CC:-gcc}"; do
	if ! command -v "$program" >/dev/null; then
		echo "model: $program is missing: it is in Debian's package of that name" >&2
		exit 1
	fi
done

mode=${1:-all} wanted=${2:-}
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT

# explore FILE FLAGS... leaves the checker's report in $tmp/out.
explore() {
	local file=$1
	shift
	rm -rf "$tmp/run" && mkdir "$tmp/run" && cp "$file.pml" "$tmp/run/m.pml"
	(
		cd "$tmp/run"
		if ! spin -a "$@" m.pml >spin.out 2>&1 || grep -q 'Error' spin.out; then cat spin.out && exit 1; fi
		# Safety properties only. -m bounds the depth and MEMLIM the memory in MB; to meet either is a failure.
		"${CC:-gcc}" "$optimise" -w -DSAFETY -DNOFAIR -DMEMLIM=2000 -o pan pan.c && ./pan -m100000 -w22 >pan.out 2>&1 || true
		cat pan.out
	) >"$tmp/out"
}

failed=0
ran=0
while read -r file name expect flags; do
	case $file in
	'' | '#'*) continue ;;
	+*) file=${file#+} ;;
	*) if [ "$mode" = short ]; then continue; fi ;;
	esac
	if [ "$mode" = trail ] && [ "$name" != "$wanted" ]; then continue; fi
	ran=$((ran + 1))
	read -ra flags <<<"$flags"
	# A broken variant is caught in less time than optimising takes.
	optimise=-O1
	if [ "$expect" != holds ]; then optimise=-O0; fi
	explore "$file" "${flags[@]}" || true
	if [ "$mode" = trail ]; then
		(cd "$tmp/run" && spin -t -p -g "${flags[@]}" m.pml)
		continue
	fi
	states=$(sed -nE 's/^ *([0-9.e+]+) states, stored.*/\1/p' "$tmp/out")
	verdict='not checked'
	if grep -q 'assertion violated' "$tmp/out"; then
		# The trail ends at an assertion, and the comment behind it names the property.
		line=$(cd "$tmp/run" && spin -t "${flags[@]}" m.pml | sed -nE 's/^spin: m.pml:([0-9]+), Error: assertion violated.*/\1/p' | tail -1)
		verdict=$(sed -nE "${line:-0}"'s|.*/\* (.*) \*/.*|\1|p' "$tmp/run/m.pml" | tr ' ' -)
	elif grep -q 'errors: 0$' "$tmp/out" && ! grep -qE 'max search depth too small|out of memory|Search not completed' "$tmp/out"; then
		verdict=holds
	fi
	case $verdict/$expect in
	holds/holds) echo "ok    $file $name: $states states, no error" ;;
	"$expect/$verdict") echo "ok    $file $name: caught, breaks $verdict" ;;
	*)
		failed=1
		echo "FAIL  $file $name: $verdict, expected: $expect"
		sed 's/^/      /' "$tmp/out" | head -20
		;;
	esac
done <variants.txt
if [ $ran = 0 ]; then
	echo "model: no variant is called '$wanted'" >&2
	exit 2
fi
exit $failed
