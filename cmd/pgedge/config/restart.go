package config

import (
	"reflect"
	"slices"
)

// NeedsRestart lists the keys that differ between two configurations and are only read at start. Limits, timeouts
// and contact are missing because a reload applies them, but for the two that size what is made at start.
func NeedsRestart(old, now *Config) []string {
	var keys []string
	differ := func(key string, a, b any) {
		if !reflect.DeepEqual(a, b) {
			keys = append(keys, key)
		}
	}
	differ("node", old.Node, now.Node)
	differ("listen", old.Listen, now.Listen)
	differ("admin", old.Admin, now.Admin)
	differ("state_dir", old.StateDir, now.StateDir)
	differ("loops", old.Loops, now.Loops)
	differ("limits.max_sessions", old.Limits.MaxSessions, now.Limits.MaxSessions)
	differ("limits.max_logins", old.Limits.MaxLogins, now.Limits.MaxLogins)
	differ("cluster", old.Cluster, now.Cluster)
	differ("audit.file", old.Audit, now.Audit)
	differ("drill", old.Drill, now.Drill)
	names := append(sortedNames(old.Databases), sortedNames(now.Databases)...)
	slices.Sort(names)
	for _, name := range slices.Compact(names) {
		differ("databases."+name, old.Databases[name].settings(), now.Databases[name].settings())
	}
	return keys
}

// settings is the database without the places where it was set, which move when a line is added to the file.
func (d Database) settings() Database {
	d.placed = nil
	return d
}
