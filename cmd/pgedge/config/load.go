package config

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// Sources are where a configuration comes from. The zero value reads nothing and gives the defaults.
type Sources struct {
	// File is the path of pgedge.yaml; "" reads none.
	File string
	// Environ is os.Environ() or, for check-config, nil: a file is checked without the overrides of this shell.
	Environ []string
	// Lookup resolves ${NAME}; nil means os.LookupEnv.
	Lookup func(string) (string, bool)
	// Flags are applied last.
	Flags []Flag
	// Upstream is the --upstream flag: the upstream of every database that the file does not name.
	Upstream string
	// CheckUpstream says what is wrong with an upstream URL; nil checks nothing.
	CheckUpstream func(url string) error
}

// Flag is one flag of serve that overrides a key.
type Flag struct {
	Name   string // with its dashes, for messages
	Path   string // the key
	Values []string
}

// cliVariables are PGEDGE_* variables that are not keys of the file.
var cliVariables = []string{"PGEDGE_NATS", "PGEDGE_NATS_CREDS", "PGEDGE_NATS_CA", "PGEDGE_NATS_CERT", "PGEDGE_NATS_KEY", "PGEDGE_UPSTREAM"}

type loader struct {
	src          Sources
	file         string
	cfg          *Config
	report       *Report
	placed       map[string]place
	lookup       func(string) (string, bool)
	usedEnv      map[string]bool
	fileIsPublic bool
	fileIsBroken bool // it could not be read as a whole
}

// Load reads all sources and returns the configuration together with everything that is wrong with it. The
// configuration must not be used when the report has errors.
func Load(src Sources) (*Config, *Report) {
	l := &loader{
		src:     src,
		file:    src.File,
		cfg:     Default(),
		report:  &Report{},
		placed:  map[string]place{},
		usedEnv: map[string]bool{},
	}
	base := src.Lookup
	if base == nil {
		base = os.LookupEnv
	}
	l.lookup = func(name string) (string, bool) {
		l.usedEnv[name] = true
		return base(name)
	}
	if src.File != "" {
		l.readFile(src.File)
	}
	l.readEnviron()
	l.readFlags()
	l.fillIn()
	l.check()
	l.report.sort()
	return l.cfg, l.report
}

// readEnviron applies PGEDGE_* variables. A name that means nothing is a warning only: Kubernetes puts
// PGEDGE_SERVICE_HOST and its like into every container beside a service called pgedge.
func (l *loader) readEnviron() {
	environ := slices.Clone(l.src.Environ)
	slices.Sort(environ)
	for _, kv := range environ {
		name, value, _ := strings.Cut(kv, "=")
		if !strings.HasPrefix(name, "PGEDGE_") || l.usedEnv[name] {
			continue
		}
		at := place{source: "environment", name: name}
		if name == "PGEDGE_UPSTREAM" && value != "" {
			l.setFallback(value, at)
			continue
		}
		if slices.Contains(cliVariables, name) {
			continue
		}
		k := keyOfVariable(name)
		if k == nil {
			l.warnf(at, "", "this environment variable means nothing to pgedge and is ignored")
			continue
		}
		if value == "" {
			continue
		}
		vs := []string{value}
		if k.list {
			vs = splitList(value)
		}
		l.placed[k.path] = at
		if err := apply(k, l.cfg, vs); err != nil {
			l.fail(at, k.path, err)
		}
	}
}

// keyOfVariable finds the key that PGEDGE_LIMITS_MAX_SESSIONS and its like stand for.
func keyOfVariable(name string) *key[Config] {
	for i := range rootKeys {
		if k := &rootKeys[i]; !k.each && Variable(k.path) == name {
			return k
		}
	}
	return nil
}

// Variable is the name of the environment variable that overrides a key.
func Variable(path string) string {
	return "PGEDGE_" + strings.ToUpper(strings.ReplaceAll(path, ".", "_"))
}

func splitList(s string) []string {
	parts := strings.Split(s, ",")
	for i := range parts {
		parts[i] = strings.TrimSpace(parts[i])
	}
	return parts
}

func (l *loader) readFlags() {
	for _, f := range l.src.Flags {
		k, _ := find(rootKeys, f.Path)
		if k == nil {
			l.errorf(place{source: "flag", name: f.Name}, "", "has no key %q", f.Path)
			continue
		}
		at := place{source: "flag", name: f.Name}
		l.placed[k.path] = at
		if err := apply(k, l.cfg, f.Values); err != nil {
			l.fail(at, "", err)
		}
	}
	if l.src.Upstream != "" {
		l.setFallback(l.src.Upstream, place{source: "flag", name: "--upstream"})
	}
}

// setFallback sets the upstream of '*'. It replaces the file's entry as a whole: mixing one source's address with
// another's control role would send a password to the wrong server.
func (l *loader) setFallback(upstream string, at place) {
	l.cfg.Databases["*"] = Database{Upstream: Secret(upstream), placed: map[string]place{"": at, "upstream": at}}
}

// fillIn computes the defaults that depend on the machine, and reads secret files.
func (l *loader) fillIn() {
	if l.cfg.Node == "" && !l.isSet("node") {
		node, err := defaultNode()
		if err != nil {
			l.fail(place{source: l.file}, "node", err)
		}
		l.cfg.Node = node
	}
	if l.cfg.StateDir == "" && !l.isSet("state_dir") {
		dir, err := DefaultStateDir()
		if err != nil {
			l.fail(place{source: l.file}, "state_dir", err)
		}
		l.cfg.StateDir = dir
	}
	l.fillInCluster()
	for _, name := range sortedNames(l.cfg.Databases) {
		d := l.cfg.Databases[name]
		if d.passwordFile == "" {
			continue
		}
		d.ControlPassword = l.readSecret(d.placed["control.password_file"], "databases."+name+".control.password_file", d.passwordFile)
		l.cfg.Databases[name] = d
	}
	if path := l.cfg.Drill.passwordFile; path != "" {
		l.cfg.Drill.Password = l.readSecret(l.placed["drill.password_file"], "drill.password_file", path)
	}
}

// readSecret reads the file that a key names, relative to the configuration.
func (l *loader) readSecret(at place, key, path string) Secret {
	secret, warning, err := readSecretFile(l.beside(path))
	if err != nil {
		l.fail(at, key, err)
	}
	if warning != "" {
		l.warnf(at, key, "%s", warning)
	}
	return secret
}

// beside resolves a path that stands in the file: a relative one begins where the file is.
func (l *loader) beside(path string) string {
	if path == "" || filepath.IsAbs(path) {
		return path
	}
	return filepath.Join(filepath.Dir(l.file), path)
}

func (l *loader) isSet(path string) bool {
	_, ok := l.placed[path]
	return ok
}

// fail reports err; each error of a joined one becomes a problem of its own.
func (l *loader) fail(at place, key string, err error) {
	var joined interface{ Unwrap() []error }
	if errors.As(err, &joined) {
		for _, e := range joined.Unwrap() {
			l.fail(at, key, e)
		}
		return
	}
	l.errorf(at, key, "%s", err.Error())
}

// errorf adds a problem. Its text is one line, so that every line of a report has its place.
func (l *loader) errorf(at place, key, format string, args ...any) {
	text := strings.ReplaceAll(fmt.Sprintf(format, args...), "\n", "; ")
	p := Problem{place: at, Key: key, Text: text}
	if slices.Contains(l.report.Errors, p) {
		return // a list may have the same fault in each of its items
	}
	l.report.Errors = append(l.report.Errors, p)
}

func (l *loader) warnf(at place, key, format string, args ...any) {
	l.report.Warnings = append(l.report.Warnings, Problem{place: at, Key: key, Text: fmt.Sprintf(format, args...)})
}

func join(a, b string) string {
	if a == "" {
		return b
	}
	return a + "." + b
}

func sortedNames[V any](m map[string]V) []string {
	names := make([]string, 0, len(m))
	for n := range m {
		names = append(names, n)
	}
	slices.Sort(names)
	return names
}
