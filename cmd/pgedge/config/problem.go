package config

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strings"
)

// errUnsupported is the text of every key and value that the design knows and this version does not implement.
var errUnsupported = errors.New("not supported in this version")

// place is where a value comes from: a line of a file, an environment variable or a flag.
type place struct {
	source string // file name, "environment" or "flag"
	line   int    // 0 unless source is a file
	column int
	name   string // variable or flag, "" for a file
}

func (p place) String() string {
	switch {
	case p.line > 0:
		return fmt.Sprintf("%s:%d", p.source, p.line)
	case p.name != "":
		return p.name
	default:
		return p.source
	}
}

// Problem is one thing that is wrong with a configuration, with its place.
type Problem struct {
	place place
	// Key is the full path of the key, "" when the problem belongs to none.
	Key  string
	Text string
}

// Line is the problem's line in the file; 0 when it is not in a file.
func (p Problem) Line() int { return p.place.line }

// Place is file:line, the name of the variable, or the flag.
func (p Problem) Place() string { return p.place.String() }

func (p Problem) String() string {
	parts := make([]string, 0, 3)
	if s := p.place.String(); s != "" {
		parts = append(parts, s)
	}
	if p.Key != "" {
		parts = append(parts, p.Key)
	}
	return strings.Join(append(parts, p.Text), ": ")
}

// Report is everything a load has to say.
type Report struct {
	Errors   []Problem
	Warnings []Problem
}

// Err is nil, or an error that lists every problem on a line of its own.
func (r *Report) Err() error {
	if len(r.Errors) == 0 {
		return nil
	}
	lines := make([]string, len(r.Errors))
	for i, p := range r.Errors {
		lines[i] = p.String()
	}
	return errors.New(strings.Join(lines, "\n"))
}

// names reports whether an error is about key or something below it.
func (r *Report) names(key string) bool {
	return slices.ContainsFunc(r.Errors, func(p Problem) bool { return p.Key == key || strings.HasPrefix(p.Key, key+".") })
}

// sort brings problems into the order in which one would fix them: the file from top to bottom, then the rest as
// it was found.
func (r *Report) sort() {
	byLine := func(a, b Problem) int {
		switch {
		case a.place.line > 0 && b.place.line > 0:
			return cmp.Or(cmp.Compare(a.place.line, b.place.line), cmp.Compare(a.place.column, b.place.column))
		case a.place.line > 0:
			return -1
		case b.place.line > 0:
			return 1
		default:
			return 0
		}
	}
	slices.SortStableFunc(r.Errors, byLine)
	slices.SortStableFunc(r.Warnings, byLine)
}
