package config

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"go.yaml.in/yaml/v4"
)

// maxFileBytes bounds the file; a configuration of a thousand databases has 300 KiB.
const maxFileBytes = 1 << 20

// readFile applies the file. fileIsBroken says that it could not be read as a whole.
func (l *loader) readFile(path string) {
	if b, ok := l.slurp(path); ok {
		l.apply(b)
	} else {
		l.fileIsBroken = true
	}
}

func (l *loader) apply(b []byte) {
	root := l.parse(b)
	l.fileIsBroken = len(l.report.Errors) > 0
	if root != nil {
		walk(l, root, "", "", rootKeys, l.cfg, l.placed)
	}
}

// slurp reads the whole file; ok is false once it has reported why it cannot.
func (l *loader) slurp(path string) (b []byte, ok bool) {
	at := place{source: path}
	f, err := os.Open(path)
	if err != nil {
		l.errorf(at, "", "cannot open the configuration: %v", errors.Unwrap(err))
		return nil, false
	}
	defer f.Close()
	b, err = io.ReadAll(io.LimitReader(f, maxFileBytes+1))
	if err != nil {
		l.errorf(at, "", "cannot read the configuration: %v", err)
		return nil, false
	}
	if len(b) > maxFileBytes {
		l.errorf(at, "", "the configuration is longer than %d bytes", maxFileBytes)
		return nil, false
	}
	if st, err := f.Stat(); err == nil {
		l.fileIsPublic = st.Mode().Perm()&0o044 != 0
	}
	return b, true
}

// parse returns the content of the only document; nil when there is none.
func (l *loader) parse(b []byte) *yaml.Node {
	docs, err := yaml.NewLoader(bytes.NewReader(b), yaml.WithUniqueKeys(false))
	if err != nil {
		l.errorf(place{source: l.file}, "", "cannot read the configuration: %v", err)
		return nil
	}
	// The keys are checked against the tables of this package, not against struct tags, so that the problems of
	// values and of keys come from one walk, each with its line.
	var root, second yaml.Node
	if err := docs.Load(&root); err != nil {
		if !errors.Is(err, io.EOF) {
			l.syntaxError(err)
		}
		return nil
	}
	if err := docs.Load(&second); err == nil {
		l.errorf(l.at(&second), "", "a second YAML document: the configuration is one")
	} else if !errors.Is(err, io.EOF) {
		l.syntaxError(err)
	}
	if root.Kind != yaml.DocumentNode || len(root.Content) == 0 {
		return nil
	}
	return root.Content[0]
}

// syntaxError reports what the YAML library says, with the library's own line where it has one.
func (l *loader) syntaxError(err error) {
	at := place{source: l.file}
	var many *yaml.LoadErrors
	if errors.As(err, &many) {
		for _, e := range many.Errors {
			l.errorf(place{source: l.file, line: max(1, e.Mark.Line), column: e.Mark.Column}, "", "%s", e.Message)
		}
		return
	}
	var one *yaml.LoadError
	if errors.As(err, &one) {
		l.errorf(place{source: l.file, line: max(1, one.Mark.Line), column: one.Mark.Column}, "", "%s", one.Message)
		return
	}
	l.errorf(at, "", "%v", err)
}

func (l *loader) at(n *yaml.Node) place {
	return place{source: l.file, line: n.Line, column: n.Column}
}

// walk goes through one mapping. rel is the path within the table, shown the full path for messages. An alias can
// contain itself; the walk still ends, because it only descends where the table has a deeper key.
func walk[T any](l *loader, n *yaml.Node, rel, shown string, keys []key[T], t *T, placed map[string]place) {
	n = resolve(n)
	if isNull(n) {
		return
	}
	if n.Kind != yaml.MappingNode {
		what := "the configuration"
		if shown != "" {
			what = "this"
		}
		l.errorf(l.at(n), shown, "%s must be a mapping of keys to values", what)
		return
	}
	seen := map[string]int{}
	for i := 0; i+1 < len(n.Content); i += 2 {
		kn, vn := n.Content[i], resolve(n.Content[i+1])
		name := join(rel, kn.Value)
		full := join(shown, kn.Value)
		if kn.Kind != yaml.ScalarNode {
			l.errorf(l.at(kn), shown, "a key must be a plain word")
			continue
		}
		if first, dup := seen[kn.Value]; dup {
			l.errorf(l.at(kn), full, "is set twice, first in line %d", first)
			continue
		}
		seen[kn.Value] = kn.Line
		k, section := find(keys, name)
		switch {
		case section:
			walk(l, vn, name, full, keys, t, placed)
		case k == nil:
			l.unknownKey(l.at(kn), full, name, keyPaths(keys))
		case k.each:
			l.walkDatabases(vn)
		default:
			at := l.at(kn)
			if !isNull(vn) {
				placed[name] = at
			}
			if vs, ok := l.values(k.later, k.emptyMeansUnset, k.list, k.expand, vn, at, full); ok {
				if err := apply(k, t, vs); err != nil {
					l.fail(at, full, err)
				}
			}
		}
	}
}

// values turns a node into the strings a key takes. ok is false when nothing is to be applied.
func (l *loader) values(later, emptyMeansUnset, list, expand bool, n *yaml.Node, at place, full string) (vs []string, ok bool) {
	if later {
		if full != "access" && isNull(n) || emptyMeansUnset && n.Kind != yaml.ScalarNode && len(n.Content) == 0 {
			return nil, false
		}
		return nil, true
	}
	switch {
	case isNull(n):
		return nil, false
	case n.Kind == yaml.ScalarNode:
		vs = []string{n.Value}
	case n.Kind == yaml.SequenceNode && list:
		vs = []string{}
		for _, e := range n.Content {
			e = resolve(e)
			if e.Kind != yaml.ScalarNode || isNull(e) {
				l.errorf(l.at(e), full, "each element must be a plain value")
				return nil, false
			}
			vs = append(vs, e.Value)
		}
	default:
		l.errorf(at, full, "must be a plain value, not %s", kindName(n.Kind))
		return nil, false
	}
	if expand && n.Kind == yaml.ScalarNode {
		l.noteLiteralPassword(at, full, vs[0])
	}
	return l.expandAll(vs, expand, at, full)
}

// expandAll replaces ${NAME} where the key allows it, and refuses it elsewhere: a literal "${" that reaches
// Postgres would only ever be a surprise.
func (l *loader) expandAll(vs []string, expand bool, at place, full string) ([]string, bool) {
	out := make([]string, len(vs))
	ok := true
	for i, v := range vs {
		if !strings.Contains(v, "${") {
			out[i] = v
			continue
		}
		if !expand {
			l.errorf(at, full, "${...} is not replaced here, only in databases.*.upstream, databases.*.control.user and cluster.nats")
			ok = false
			continue
		}
		s, _, err := expandEnv(v, l.lookup)
		if err != nil {
			l.fail(at, full, err)
			ok = false
		}
		out[i] = s
	}
	return out, ok
}

func (l *loader) walkDatabases(n *yaml.Node) {
	if isNull(n) {
		return
	}
	if n.Kind != yaml.MappingNode {
		l.errorf(l.at(n), "databases", "this must be a mapping of database names to their settings")
		return
	}
	if len(n.Content)/2 > maxDatabases {
		l.errorf(l.at(n), "databases", "lists %d databases, more than %d", len(n.Content)/2, maxDatabases)
		return
	}
	seen := map[string]int{}
	for i := 0; i+1 < len(n.Content); i += 2 {
		kn := n.Content[i]
		name := kn.Value
		full := "databases." + name
		if kn.Kind != yaml.ScalarNode || name == "" || len(name) > maxNameBytes || strings.ContainsRune(name, 0) {
			l.errorf(l.at(kn), "databases", "a database name has 1 to %d bytes", maxNameBytes)
			continue
		}
		if first, dup := seen[name]; dup {
			l.errorf(l.at(kn), full, "is set twice, first in line %d", first)
			continue
		}
		seen[name] = kn.Line
		d := Database{placed: map[string]place{"": l.at(kn)}}
		walk(l, n.Content[i+1], "", full, databaseKeys, &d, d.placed)
		l.cfg.Databases[name] = d
	}
}

// noteLiteralPassword warns of a password that stands in the file itself.
func (l *loader) noteLiteralPassword(at place, full, raw string) {
	user, password, _, ok := splitUserinfo(raw)
	literal := ok && password != "" && !strings.Contains(password, "${")
	if full == "cluster.nats" && ok && password == "" && !strings.Contains(user, "${") {
		literal = true
	}
	if !literal {
		return
	}
	readable := ""
	if l.fileIsPublic {
		readable = ", and others can read this file"
	}
	l.warnf(at, full, "holds a secret in clear text%s: use ${NAME} or a *_file key", readable)
}

func resolve(n *yaml.Node) *yaml.Node {
	for i := 0; n.Kind == yaml.AliasNode && n.Alias != nil && i < 10; i++ {
		n = n.Alias
	}
	return n
}

func isNull(n *yaml.Node) bool {
	return n.Kind == yaml.ScalarNode && n.ShortTag() == "!!null"
}

func kindName(k yaml.Kind) string {
	switch k {
	case yaml.SequenceNode:
		return "a list"
	case yaml.MappingNode:
		return "a mapping"
	default:
		return fmt.Sprintf("a YAML node of kind %d", k)
	}
}
