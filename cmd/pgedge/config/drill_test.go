package config

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestTheCanaryIsWholeOrNotThere(t *testing.T) {
	const rest = "\ndatabases: {app: {upstream: 'postgres://control:x@db'}}\n"
	for text, want := range map[string]string{
		"drill: {user: canary}":                                         "has a user but no database",
		"drill: {database: app}":                                        "drill: has no user",
		"drill: {user: canary, database: other}":                        "other is not one of databases",
		"drill: {user: control, database: app}":                         "is the control role of databases.app",
		"drill: {user: canary, database: app, password_file: /nowhere}": "drill.password_file: cannot open secret file",
		"drill: {user: '', database: app}":                              "must have 1 to 63 bytes",
		"drill: {user: canary, database: app, password: x}":             "drill.password: unknown key",
	} {
		_, r := load(t, text+rest)
		if got := strings.Join(lines(r.Errors), "\n"); !strings.Contains(got, want) {
			t.Errorf("%s: %q, want %q", text, got, want)
		}
	}
	dir := t.TempDir()
	secret, file := filepath.Join(dir, "secret"), filepath.Join(dir, "pgedge.yaml")
	for path, text := range map[string]string{secret: "hush\n", file: "drill: {user: canary, password_file: secret, database: app}" + rest} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	c, r := Load(Sources{File: file})
	if err := r.Err(); err != nil || c.Drill.User != "canary" || c.Drill.Password.Reveal() != "hush" || c.Drill.Database != "app" {
		t.Errorf("%+v, %v", c.Drill, err)
	}
}
