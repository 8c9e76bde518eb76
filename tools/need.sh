#!/usr/bin/env bash
# Usage: tools/need.sh THING...     THING: make postgres cc spin ip pgbouncer haproxy pkg-config libevent-dev libssl-dev
#
# Checks that each thing is on this machine. What is missing is installed with apt-get where that is allowed
# (root, or sudo without a password); otherwise it says what to do and exits 1. A C compiler is only wished for:
# without one the tests run without the race detector. So is spin: without it the model of the protocol is not
# checked, and its test says so.
set -euo pipefail
exec </dev/null

have_postgres() {
	# The same places, in the same order, as Find in internal/pgserver/find.go.
	local dir
	if [ -n "${PGEDGE_POSTGRES_BIN:-}" ]; then
		server_in "$PGEDGE_POSTGRES_BIN"
		return
	fi
	if dir=$(pg_config --bindir 2>/dev/null) && server_in "$dir"; then return 0; fi
	for dir in /usr/lib/postgresql/*/bin; do
		if server_in "$dir"; then return 0; fi
	done
	dir=$(command -v postgres) && server_in "$(dirname "$(readlink -f "$dir")")"
}

server_in() { [ -x "$1/postgres" ] && [ -x "$1/initdb" ]; }

have_cc() {
	# A compiler without the C library's headers is no use to cgo.
	printf '#include <stdlib.h>\nint main(void){return 0;}\n' | "${CC:-gcc}" -x c -o /dev/null - 2>/dev/null
}

have() {
	case $1 in
	postgres) have_postgres ;;
	cc) have_cc ;;
	libevent-dev) pkg-config --exists libevent 2>/dev/null ;;
	libssl-dev) pkg-config --exists openssl 2>/dev/null ;;
	*) command -v "$1" >/dev/null || [ -x "/usr/sbin/$1" ] ;;
	esac
}

wished_for() { case $1 in cc | spin | haproxy | ip) return 0 ;; *) return 1 ;; esac; }

packages_for() {
	case $1 in
	postgres) echo postgresql ;;
	cc) echo gcc libc6-dev ;;
	ip) echo iproute2 ;;
	*) echo "$1" ;;
	esac
}

packages=()
hard=0 # something is missing that cannot be done without
for thing in "$@"; do
	if ! have "$thing"; then
		echo "need: $thing is missing on this machine"
		read -ra more <<<"$(packages_for "$thing")"
		packages+=("${more[@]}")
		wished_for "$thing" || hard=1
	fi
done
[ ${#packages[@]} -gt 0 ] || exit 0

as_root=()
if [ "$(id -u)" != 0 ]; then as_root=(sudo -n); fi
if ! command -v apt-get >/dev/null || { [ "$(id -u)" != 0 ] && ! sudo -n true 2>/dev/null; }; then
	if [ $hard = 0 ]; then exit 0; fi
	{
		echo "need: cannot install them: that takes apt-get (Debian, Ubuntu) and root or sudo without a password."
		echo "need: please install what Debian calls: ${packages[*]}"
		echo "need: a PostgreSQL server elsewhere is found by PGEDGE_POSTGRES_BIN=<directory of postgres and initdb>."
	} >&2
	exit 1
fi

echo "need: installing with apt-get: ${packages[*]}"
case " ${packages[*]} " in *" postgresql "*)
	echo "need: (Debian's package also creates its own server on port 5432; pgedge does not touch that one)" ;;
esac
export DEBIAN_FRONTEND=noninteractive
"${as_root[@]}" apt-get update -q
"${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends "${packages[@]}"
for thing in "$@"; do
	if ! wished_for "$thing" && ! have "$thing"; then
		echo "need: $thing is still missing after the installation" >&2
		exit 1
	fi
done
