package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"pgedge/cmd/pgedge/config"
)

// The sample of the documentation was refused by the program that it documents.
func TestTheSampleFileOfTheDocumentationIsAccepted(t *testing.T) {
	text, err := os.ReadFile("../../docs/configuration.md")
	if err != nil {
		t.Fatal(err)
	}
	_, after, ok := strings.Cut(string(text), "```yaml\n")
	sample, _, closed := strings.Cut(after, "```")
	if !ok || !closed {
		t.Fatal("docs/configuration.md has no sample")
	}
	dir := t.TempDir()
	secret, file := filepath.Join(dir, "control-password"), filepath.Join(dir, "pgedge.yaml")
	writeFile(t, secret, "secret\n")
	const path = "/etc/pgedge/control-password"
	if !strings.Contains(sample, path) {
		t.Fatalf("the sample has no %s", path)
	}
	writeFile(t, file, strings.Replace(sample, path, secret, 1))
	_, report := config.Load(config.Sources{File: file, CheckUpstream: checkUpstream})
	if err := report.Err(); err != nil {
		t.Error(err)
	}
}
