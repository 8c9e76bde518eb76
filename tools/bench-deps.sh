#!/usr/bin/env bash
# Usage: tools/bench-deps.sh     DEBIAN_MIRROR=URL chooses where the sources come from; without it, where apt's packages do
#
# Builds the newest PgBouncer and HAProxy that Debian's stable release has as source, because a machine on an older
# release would compare with peers that are years behind. They go where bench/find.go looks. One that is there already
# is left alone. One that cannot be built comes from this machine's packages instead, and a line says so.
#
# The sources are those of the peers' authors, without Debian's later patches: they serve a benchmark on this machine
# and nothing else.
set -euo pipefail
cd "$(dirname "$0")/.."
exec </dev/null

# Not under root's home: PgBouncer does not run as root, and the user it then runs as cannot look in there.
if [ -n "${XDG_CACHE_HOME:-}" ]; then
	peers=$XDG_CACHE_HOME/pgedge/peers
elif [ "$(id -u)" = 0 ]; then
	peers=/var/cache/pgedge/peers
else
	peers=$HOME/.cache/pgedge/peers
fi

tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT

say() { echo "bench-deps: $*"; }

mirrors() {
	if [ -n "${DEBIAN_MIRROR:-}" ]; then
		echo "$DEBIAN_MIRROR"
	elif command -v apt-get >/dev/null; then
		# shellcheck disable=SC2016 # apt-get fills these in
		apt-get indextargets --format '$(LABEL) $(CREATED_BY) $(REPO_URI)' | sed -n 's/^Debian Packages //p' | sort -u
	fi
}

# fetch PATH FILE SHA256: PATH is below the mirror's pool. apt's own downloader knows the proxies that apt is told of.
fetch() {
	local mirror
	for mirror in $(mirrors); do
		if [ -x /usr/lib/apt/apt-helper ]; then
			# The sandbox user may not write into $tmp; what is fetched is judged by its checksum.
			/usr/lib/apt/apt-helper -q -o APT::Sandbox::User= download-file "${mirror%/}/pool/main/$1" "$2" "SHA256:$3" || continue
		else
			curl -fsSL --max-time 120 -o "$2" "${mirror%/}/pool/main/$1" || continue
		fi
		if sha256sum --quiet -c <<<"$3  $2"; then return 0; fi
	done
	return 1
}

# Nothing is built in that depends on what else happens to be installed. TLS is, since a benchmark measures it.
make_pgbouncer() {
	./configure --without-cares --without-pam --without-systemd && make -j"$(nproc)" pgbouncer
}

make_haproxy() {
	make -j"$(nproc)" TARGET=linux-glibc USE_OPENSSL=1 haproxy
}

is_version() { [ -x "$1" ] && "$1" "$2" 2>/dev/null | head -1 | grep -qwF "$3"; }

# build NAME VERSION VERSIONFLAG PATH SHA256
build() {
	local name=$1 version=$2 flag=$3 path=$4 sha=$5 dir=$tmp/$1
	tools/need.sh cc make pkg-config libevent-dev libssl-dev || return 1
	mkdir "$dir"
	say "$name $version: fetching its source"
	if ! fetch "$path" "$dir/source.tar.gz" "$sha" >"$dir/log" 2>&1; then
		sed 's/^/    /' "$dir/log" | tail -5
		say "$name $version: the source cannot be had (DEBIAN_MIRROR=URL names another mirror)"
		return 1
	fi
	say "$name $version: building (a minute or two)"
	if ! (cd "$dir" && mkdir source && tar xzf source.tar.gz -C source --strip-components 1 && cd source && "make_$name") >"$dir/log" 2>&1 ||
		! is_version "$dir/source/$name" "$flag" "$version"; then
		sed 's/^/    /' "$dir/log" | tail -20
		say "$name $version: cannot be built"
		return 1
	fi
	# Renaming replaces a program that another bench is running; writing over it is not allowed.
	install -D -m 755 "$dir/source/$name" "$peers/.$name.$$" && mv "$peers/.$name.$$" "$peers/$name"
}

# peer NAME VERSION VERSIONFLAG PATH SHA256
peer() {
	if is_version "$peers/$1" "$3" "$2" || build "$@"; then
		say "$1 $2: $peers/$1"
		return
	fi
	# An older build of ours would be found before the package.
	rm -f "$peers/$1"
	say "$1: falling back to the package of this machine, which may be older"
	tools/need.sh "$1"
	local program
	program=$(command -v "$1" || echo "/usr/sbin/$1")
	if [ -x "$program" ]; then
		say "$1: $program, $("$program" "$3" | head -1)"
	else
		# need.sh only wishes for HAProxy: the tests do without it.
		say "$1: not on this machine; the benchmarks leave it out"
	fi
}

# A checksum is the one that the signed index of Debian 13 gives for the .orig.tar.gz.
peer pgbouncer 1.24.1 --version p/pgbouncer/pgbouncer_1.24.1.orig.tar.gz da72a3aba13072876d055a3e58dd4aba4a5de4ed6148e73033185245598fd3e0
peer haproxy 3.0.11 -v h/haproxy/haproxy_3.0.11.orig.tar.gz a133e2d550c5fd9a849b5c7ab17bb945bcdad209ca140d41f45ebf31943ae783
