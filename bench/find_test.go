package main

import (
	"os"
	"path/filepath"
	"testing"
)

func TestANamedPeerComesBeforeABuiltOneAndThatBeforeTheOneOnPath(t *testing.T) {
	cache, path := t.TempDir(), t.TempDir()
	t.Setenv("XDG_CACHE_HOME", cache)
	t.Setenv("PATH", path)
	t.Setenv("PGEDGE_HAPROXY", "")
	program := func(file string) string {
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, nil, 0o755); err != nil {
			t.Fatal(err)
		}
		return file
	}
	want := func(file string) {
		t.Helper()
		if got := peerBinary("haproxy"); got != file {
			t.Errorf("found %q, want %q", got, file)
		}
	}
	want(program(filepath.Join(path, "haproxy")))
	want(program(filepath.Join(cache, "pgedge", "peers", "haproxy")))
	t.Setenv("PGEDGE_HAPROXY", "/nowhere/haproxy")
	want("/nowhere/haproxy")
}

func TestAPeerThatIsNowhereIsNotFound(t *testing.T) {
	t.Setenv("XDG_CACHE_HOME", t.TempDir())
	if got := peerBinary("no-such-peer"); got != "" {
		t.Errorf("found %q", got)
	}
}
