package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// peerBinary is the program of a peer, "" when there is none: the one that PGEDGE_PGBOUNCER or PGEDGE_HAPROXY names, the
// one that tools/bench-deps.sh built, the one on PATH, the one in /usr/sbin, which a user's PATH lacks on Debian. One that
// is named is not checked here: that it cannot be started must be an error, not another program measured in its place.
func peerBinary(name string) string {
	if path := os.Getenv("PGEDGE_" + strings.ToUpper(name)); path != "" {
		return path
	}
	for _, candidate := range []string{filepath.Join(peersDir(), name), name, filepath.Join("/usr/sbin", name)} {
		if path, err := exec.LookPath(candidate); err == nil {
			return path
		}
	}
	return ""
}

// peersDir is where tools/bench-deps.sh puts what it builds; the two must agree. It is not under root's home, because
// PgBouncer does not run as root and the user it then runs as cannot look in there.
func peersDir() string {
	cache := os.Getenv("XDG_CACHE_HOME")
	switch {
	case cache != "":
	case os.Getuid() == 0:
		cache = "/var/cache"
	default:
		cache = filepath.Join(os.Getenv("HOME"), ".cache")
	}
	return filepath.Join(cache, "pgedge", "peers")
}
