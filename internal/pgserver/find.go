package pgserver

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sort"
	"strconv"
	"strings"
)

// BinDirEnv names the environment variable that overrides the search of Find, so that the same tests can be
// run against another version of Postgres.
const BinDirEnv = "PGEDGE_POSTGRES_BIN"

// ErrNotFound is returned (wrapped) when no PostgreSQL server is installed.
var ErrNotFound = errors.New("no PostgreSQL server found")

// Find returns the directory that holds `postgres` and `initdb`. It looks at $PGEDGE_POSTGRES_BIN, then at
// `pg_config --bindir`, then at the newest /usr/lib/postgresql/*/bin, then at $PATH. A client-only installation
// has a pg_config but no server, so each candidate is checked for both programs.
func Find() (string, error) {
	if dir := os.Getenv(BinDirEnv); dir != "" {
		if !hasServer(dir) {
			return "", fmt.Errorf("%w: %s=%s does not hold postgres and initdb", ErrNotFound, BinDirEnv, dir)
		}
		return dir, nil
	}
	if out, err := exec.Command("pg_config", "--bindir").Output(); err == nil {
		if dir := strings.TrimSpace(string(out)); hasServer(dir) {
			return dir, nil
		}
	}
	dirs, _ := filepath.Glob("/usr/lib/postgresql/*/bin") // The pattern is constant, so the error is always nil.
	sort.Slice(dirs, func(i, j int) bool { return majorOf(dirs[i]) > majorOf(dirs[j]) })
	for _, dir := range dirs {
		if hasServer(dir) {
			return dir, nil
		}
	}
	if path, err := exec.LookPath("postgres"); err == nil {
		if real, err := filepath.EvalSymlinks(path); err == nil {
			path = real
		}
		if dir := filepath.Dir(path); hasServer(dir) {
			return dir, nil
		}
	}
	return "", fmt.Errorf("%w: looked at $%s, pg_config --bindir, /usr/lib/postgresql/*/bin and $PATH; "+
		"on Debian or Ubuntu install it with: apt-get install postgresql", ErrNotFound, BinDirEnv)
}

func hasServer(dir string) bool {
	for _, name := range []string{"postgres", "initdb"} {
		if fi, err := os.Stat(filepath.Join(dir, name)); err != nil || fi.IsDir() || fi.Mode()&0o111 == 0 {
			return false
		}
	}
	return true
}

// majorOf returns 15 for /usr/lib/postgresql/15/bin; numbers are compared as numbers, so that 9 sorts below 15.
func majorOf(binDir string) int {
	n, err := strconv.Atoi(filepath.Base(filepath.Dir(binDir)))
	if err != nil {
		return -1
	}
	return n
}
