package main

import (
	"os"
	"slices"
	"strings"
)

// clearPGVariables keeps this process's own connections to Postgres from being led elsewhere by a shell's PGSERVICE,
// PGOPTIONS and the like. Names in keep stay.
func clearPGVariables(keep ...string) {
	for _, kv := range os.Environ() {
		name, _, _ := strings.Cut(kv, "=")
		if strings.HasPrefix(name, "PG") && !strings.HasPrefix(name, "PGEDGE_") && !slices.Contains(keep, name) {
			os.Unsetenv(name)
		}
	}
}

// givenToUpstreams are always given explicitly where pgedge connects, so that the variables do no harm; a
// configuration may name them as ${PGPASSWORD}, now and at a reload.
var givenToUpstreams = []string{"PGHOST", "PGPORT", "PGDATABASE", "PGUSER", "PGPASSWORD"}
