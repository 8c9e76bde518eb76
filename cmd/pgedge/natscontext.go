package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"pgedge/cluster"
)

// maxContextBytes bounds a context file; one with a JWT in it has a few kilobytes.
const maxContextBytes = 64 << 10

// natsContext is the part of a context of the nats tool that says how to connect. The tool keeps each one as
// NAME.json; keys that do not matter here are ignored, keys that would change where a command ends up are refused.
type natsContext struct {
	URL         string `json:"url"`
	User        string `json:"user"`
	Password    string `json:"password"`
	Token       string `json:"token"`
	Creds       string `json:"creds"`
	NKey        string `json:"nkey"`
	Cert        string `json:"cert"`
	Key         string `json:"key"`
	CA          string `json:"ca"`
	TLSFirst    bool   `json:"tls_first"`
	Domain      string `json:"jetstream_domain"`
	InboxPrefix string `json:"inbox_prefix"`

	NSC       string `json:"nsc"`
	UserJWT   string `json:"user_jwt"`
	UserSeed  string `json:"user_seed"`
	APIPrefix string `json:"jetstream_api_prefix"`
	Proxy     string `json:"socks_proxy"`
}

// natsContextDir is where the nats tool keeps its contexts.
func natsContextDir() (string, error) {
	base := os.Getenv("XDG_CONFIG_HOME")
	if base == "" {
		home, err := os.UserHomeDir()
		if err != nil {
			return "", fmt.Errorf("cannot find the contexts of the nats tool: %w", err)
		}
		base = filepath.Join(home, ".config")
	}
	return filepath.Join(base, "nats", "context"), nil
}

// loadNATSContext fills in how to connect.
func loadNATSContext(name string, o *cluster.DialOptions) error {
	if name == "" || name == "." || name == ".." || strings.ContainsAny(name, `/\`) {
		return usageErrorf("--context %q: is no name of a context", name)
	}
	dir, err := natsContextDir()
	if err != nil {
		return err
	}
	path := filepath.Join(dir, name+".json")
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("--context %s: %s does not exist; nats context ls lists what there is", name, path)
	}
	if err != nil {
		return fmt.Errorf("--context %s: %w", name, err)
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxContextBytes+1))
	if err != nil {
		return fmt.Errorf("--context %s: %w", name, err)
	}
	var c natsContext
	if len(b) > maxContextBytes || json.Unmarshal(b, &c) != nil {
		return fmt.Errorf("--context %s: %s is not a context of the nats tool", name, path)
	}
	for key, value := range map[string]string{
		"nsc": c.NSC, "user_jwt": c.UserJWT, "user_seed": c.UserSeed, "jetstream_api_prefix": c.APIPrefix, "socks_proxy": c.Proxy,
	} {
		if value != "" {
			return fmt.Errorf("--context %s: its %s is not supported by pgedge: use a context with url, creds, nkey, user or token, or give --nats", name, key)
		}
	}
	if c.URL == "" {
		c.URL = "nats://127.0.0.1:4222"
	}
	o.URL, o.Domain, o.InboxPrefix = c.URL, c.Domain, c.InboxPrefix
	o.User, o.Password, o.Token, o.TLSFirst = c.User, c.Password, c.Token, c.TLSFirst
	o.CertFile, o.KeyFile, o.CAFile = atHome(c.Cert), atHome(c.Key), atHome(c.CA)
	if o.CredsFile = atHome(c.Creds); o.CredsFile == "" {
		o.CredsFile = atHome(c.NKey)
	}
	return nil
}

// atHome replaces the ~ that the nats tool allows at the beginning of a path.
func atHome(path string) string {
	rest, ok := strings.CutPrefix(path, "~/")
	if !ok {
		return path
	}
	home, err := os.UserHomeDir()
	if err != nil {
		return path
	}
	return filepath.Join(home, rest)
}

// natsContexts lists the names of the contexts, for completion.
func natsContexts() []string {
	dir, err := natsContextDir()
	if err != nil {
		return nil
	}
	files, err := filepath.Glob(filepath.Join(dir, "*.json"))
	if err != nil {
		return nil
	}
	for i, f := range files {
		files[i] = strings.TrimSuffix(filepath.Base(f), ".json")
	}
	return files
}
