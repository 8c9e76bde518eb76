package main

import (
	"fmt"
	"runtime"
	"runtime/debug"

	"github.com/spf13/cobra"

	"pgedge/revoke"
)

// version is set by the linker in a release: -X main.version=v1.2.3.
var version = ""

// Versions of what pgedge speaks. The schemas travel in facts and receipts, so that neighbouring versions of pgedge
// can work side by side.
const (
	postgresProtocols = "3.0"
	postgresVersions  = "14 to 18"
	factVersion       = 1
)

type versionInfo struct {
	Version   string `json:"version"`
	Commit    string `json:"commit"`
	Go        string `json:"go"`
	Platform  string `json:"platform"`
	Protocols string `json:"postgres_protocols"`
	Postgres  string `json:"postgres_versions"`
	Fact      int    `json:"fact_version"`
	Receipt   string `json:"receipt_schema"`
}

func currentVersion() versionInfo {
	v := versionInfo{
		Version: version, Commit: "unknown", Go: runtime.Version(), Platform: runtime.GOOS + "/" + runtime.GOARCH,
		Protocols: postgresProtocols, Postgres: postgresVersions, Fact: factVersion, Receipt: revoke.ReceiptSchema,
	}
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return v.withDefaults()
	}
	modified := ""
	for _, s := range info.Settings {
		switch s.Key {
		case "vcs.revision":
			v.Commit = s.Value
		case "vcs.modified":
			if s.Value == "true" {
				modified = "-modified"
			}
		}
	}
	if v.Commit != "unknown" {
		v.Commit += modified
	}
	return v.withDefaults()
}

func (v versionInfo) withDefaults() versionInfo {
	if v.Version == "" {
		v.Version = "devel"
	}
	return v
}

// programVersion is what heartbeats and receipts carry: short, and telling two builds apart.
func programVersion() string {
	v := currentVersion()
	if v.Version != "devel" || v.Commit == "unknown" {
		return v.Version
	}
	return "devel-" + v.Commit[:min(12, len(v.Commit))]
}

func (a *app) versionCommand() *cobra.Command {
	return &cobra.Command{
		Use:     "version",
		Short:   "Print version, commit, Go version and protocol versions",
		Long:    "Print the version of this binary, the commit it was built from, the Go version, and the versions of the protocols it speaks.",
		Example: "  pgedge version\n  pgedge version -o json",
		GroupID: groupLook,
		Args:    noArgs,
		RunE: func(*cobra.Command, []string) error {
			v := currentVersion()
			if a.json() {
				return a.printJSON(v)
			}
			fmt.Fprintf(a.io.out, "pgedge %s\ncommit    %s\ngo        %s %s\nprotocol  %s (Postgres %s)\nfact      v%d\nreceipt   %s\n",
				v.Version, v.Commit, v.Go, v.Platform, v.Protocols, v.Postgres, v.Fact, v.Receipt)
			return nil
		},
	}
}
